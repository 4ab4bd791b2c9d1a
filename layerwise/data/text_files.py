"""Files of text of any size, plain or compressed: read in pieces, decoded strictly.

UTF-8 with or without a mark, and UTF-16 with one; anything else is an error that names the file,
the line and the byte. No line is longer than LONGEST_LINE in memory, whatever the file holds.
"""

import codecs
import gzip
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerwise.data.naming import reason, shown
from layerwise.errors import DataError

BLOCK = 1 << 20
LONGEST_LINE = 1 << 28  # bytes; a corpus of one line of 100 MB (text8) is read
COMPRESSED = {  # suffix: first bytes, and what opens it
    ".gz": (b"\x1f\x8b", gzip.open),
    ".xz": (b"\xfd7zXZ\0", lzma.open),
    ".zst": (b"\x28\xb5\x2f\xfd", lambda path: pa.input_stream(str(path), compression="zstd")),
}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, pa.ArrowInvalid)


def bare(path: Path) -> Path:
    """The name without the suffix of a compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def open_stream(path: Path) -> Any:
    """The bytes of a file, decompressed where its first ones say gzip, xz or zstandard."""
    with open(path, "rb") as file:
        start = file.read(6)
    openers = [opener for mark, opener in COMPRESSED.values() if start.startswith(mark)]
    return openers[0](path) if openers else open(path, "rb")


def blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, decompressed, in pieces of BLOCK. Errors: damaged or cut off."""
    try:
        with open_stream(path) as stream:
            while block := stream.read(BLOCK):
                yield block
    except (*DAMAGED, OSError) as e:
        if isinstance(e, OSError) and e.errno and not isinstance(e, gzip.BadGzipFile):
            raise
        kind = path.suffix.lstrip(".") or "compressed"
        raise DataError(
            f"'{shown(path.name)}' is a damaged {'gzip' if kind == 'gz' else kind} file "
            f"({reason(e)}): it ends early or was changed on its way; download or copy it again"
        ) from e


def head(path: Path, size: int = 1 << 18) -> bytes:
    """The first bytes of a file, decompressed."""
    return next(iter(blocks(path)), b"")[:size]


def pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces, line ends as a line feed.

    Errors: DataError for bytes that are not text, and for lines that are too long.
    """
    decoder: object = None
    at, line, since = 0, 1, 0  # bytes and lines before this block, bytes since the last line end
    for block in blocks(path):
        if decoder is None:
            encoding = "utf-16" if block.startswith(UTF16) else "utf-8-sig"
            decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), True)
        first, last = block.find(b"\n"), block.rfind(b"\n")
        since += len(block) if first < 0 else first
        if since > LONGEST_LINE:
            most = LONGEST_LINE / 2**20
            raise DataError(
                f"'{shown(path.name)}' line {line:,} is longer than {most:,.0f} MiB, more than is "
                "read at once; put line ends into it (fold -s -w 100000 FILE > NEW), or one "
                "document per line"
            )
        since = since if last < 0 else len(block) - last - 1
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as e:
            raise _not_text(path, e, at - (len(e.object) - len(block)), line) from e
        if "\0" in text:
            raise _zero_bytes(path, line + text[: text.index("\0")].count("\n"))
        yield text
        at, line = at + len(block), line + block.count(b"\n")
    if decoder is not None:
        try:
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as e:
            raise _not_text(path, e, at - len(e.object), line) from e


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, counted from 1, without their ends."""
    number, held = 1, []
    for piece in pieces(path):
        parts = piece.split("\n")
        held.append(parts[0])
        for part in parts[1:]:
            yield number, "".join(held)
            number, held = number + 1, [part]
    if rest := "".join(held):
        yield number, rest


def read_text(path: Path) -> str:
    return "".join(pieces(path))


# ---- errors --------------------------------------------------------------------------------------
def _not_text(path: Path, e: UnicodeDecodeError, start: int, line: int) -> DataError:
    file, raw = shown(path.name), e.object
    line += raw[: e.start].count(b"\n")
    around = raw[max(0, e.start - 500) : e.start + 500]
    guess, others = "WINDOWS-1252", ""
    if sum(byte > 127 for byte in around) >= len(around) / 4:
        guess, others = "WINDOWS-1251", " (or GB18030, SHIFT_JIS, EUC-KR: see which reads right)"
    return DataError(
        f"'{file}' line {line:,} is not UTF-8: byte {start + e.start:,} of the file is "
        f"0x{raw[e.start]:02x}; convert it: iconv -f {guess} -t UTF-8 '{file}' > new.txt{others}"
    )


def _zero_bytes(path: Path, line: int) -> DataError:
    file = shown(path.name)
    return DataError(
        f"'{file}' line {line:,} holds zero bytes, so it is not text, or UTF-16 without its mark; "
        f"convert it: iconv -f UTF-16LE -t UTF-8 '{file}' > new.txt"
    )


# ---- what a file holds ---------------------------------------------------------------------------
PROSE = frozenset(".txt .text .md .rst .tex .html .htm .xml .org .adoc .log .srt".split())  # noqa: SIM905
_CODE = """.py .pyi .ipynb .js .jsx .mjs .ts .tsx .java .kt .scala .c .h .cc .cpp .cxx .hpp .hh .cs
.go .rs .rb .php .pl .pm .lua .r .jl .m .swift .sh .bash .zsh .ps1 .bat .sql .hs .ml .ex .exs .erl
.clj .lisp .el .vim .asm .s .f90 .pas .dart .zig .nim .v .sv .vhd .cu .proto .cmake .gradle .css
.scss .vue .svelte .yaml .yml .toml .ini .cfg .conf .mk .dockerfile"""
CODE = frozenset(_CODE.split())
TAGGED = frozenset((".conll", ".conllu", ".iob", ".iob2", ".bio"))
JSON = frozenset((".jsonl", ".ndjson", ".json"))
TABLES = frozenset((".csv", ".tsv", ".tab"))
_OTHERS = """.pdf .doc .docx .odt .rtf .xls .xlsx .ods .ppt .pptx .epub .mobi .zip .7z .rar .tar
.tgz .exe .dll .so .o .a .class .jar .pyc .whl .bin .dat .db .sqlite .pkl .pickle .npy .npz .pt .pth
.onnx .gguf .safetensors .h5 .wav .flac .mp3 .ogg .m4a .mp4 .avi .mov .mkv .webm .svg .psd .woff
.woff2 .ttf .otf .lock .sum .map"""
OTHERS = frozenset(_OTHERS.split())  # that are not text, or none that anybody wants to learn
MARKS = (  # that belong to the letter before them; `re` does not count them as letters
    "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0981-\u0983"
    "\u09bc-\u09cd\u0a01-\u0a4d\u0a81-\u0acd\u0b01-\u0b57\u0b82-\u0bcd\u0c00-\u0c56\u0c81-\u0cd6"
    "\u0d00-\u0d4d\u0e31-\u0e4e\u200c\u200d"
)
TAG = re.compile(r"O|[BIESLUM]-\S+")


def sniff(path: Path) -> str:
    """What a file holds, by its name and first bytes.

    "parquet", "json", "table", "tagged" (CoNLL), "document" or "binary".
    """
    suffix = bare(path).suffix.lower()
    if suffix in (".parquet", ".pq"):
        return "parquet"
    if suffix in OTHERS:
        return "binary"
    for kind, suffixes in (("json", JSON), ("table", TABLES), ("document", CODE)):
        if suffix in suffixes:
            return kind
    start = head(path)
    text = start.decode("utf-16" if start.startswith(UTF16) else "utf-8-sig", "replace")
    text = text.replace("\r\n", "\n")
    lost = text[: len(text) - 4].count("\ufffd")
    if suffix not in PROSE | TAGGED and ("\0" in text or lost > len(text) / 50):
        return "binary"
    some = text.split("\n")[: 400 if len(start) < 1 << 18 else -1][:400]
    if suffix in TAGGED or looks_tagged(some):
        return "tagged"
    if suffix in PROSE:
        some = [x.replace(", ", " ") for x in some]  # of sentences
    return "table" if looks_like_columns(some) else "document"


def looks_tagged(some: list[str]) -> bool:
    """A word and its tag per line, sentences apart by blank lines, as CoNLL."""
    rows = [x.split() for x in some if x.strip() and not x.startswith(("-DOCSTART", "# "))]
    if len(rows) < 2 or len(rows) == len(some) or len(rows[0]) < 2:
        return False
    tags = sum(bool(TAG.fullmatch(row[-1])) for row in rows)
    return len({len(row) for row in rows}) == 1 and tags > 0.8 * len(rows)


def looks_like_columns(some: list[str]) -> bool:
    """Cells in columns: nearly every line has the same number of them."""
    rows = [line for line in some if line.strip()]
    for mark in ("\t", ",", ";", "|"):
        widths = Counter(line.count(mark) for line in rows)
        width, alike = widths.most_common(1)[0] if rows else (0, 0)
        if width and len(rows) > (1 if mark == "\t" else 4) and alike >= 0.95 * len(rows):
            return True
    words = [line.split() for line in rows]
    if len(rows) < 3 or len(words[0]) < 3 or len({len(row) for row in words}) > 1:
        return False
    return 2 * sum(bool(re.fullmatch(r"[-+.\d]+", c)) for c in words[-1]) > len(words[-1])
