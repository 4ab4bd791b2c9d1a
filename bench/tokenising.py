"""Tokenising a corpus into its file: ours beside the batch encoding of `tokenizers` alone.

Command    python bench/tokenising.py [--quick]
Hardware   2 CPU cores
Time       about 3 minutes (--quick: 1)
Expected   at least 0.9 of what the best of its own calls reaches

Real books, each one text, with GPT-2's tokens and BERT's, from the vocabularies in LAYERWISE_DATA
(default ../shared/data). Ours reads the texts twice (once to know whether they are
known), encodes, adds the ends of documents and writes tokens and index to disk; the peers only
encode what they are given, and leave Python objects behind. Quality: the tokens of the first
book are the same (paragraphs, cut at blank lines, lose those and are not compared).
"""

import gzip
import hashlib
import json
import lzma
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import sidebyside

DATA = pathlib.Path(
    os.environ.get("LAYERWISE_DATA", pathlib.Path(__file__).parents[1] / "../shared/data")
)
OURS = "ours, to a file"
PEERS = ("tokenizers, encode_batch", "tokenizers, encode_batch_fast", "tokenizers, by paragraphs")
VOCABULARIES = {"GPT-2, byte-level BPE": "gpt-2", "BERT, WordPiece": "bert-bge"}


def books(characters: int) -> list[str]:
    out: list[str] = []
    with lzma.open(DATA / "text/books.jsonl.xz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            out.append(row["text"])
            if sum(map(len, out)) >= characters:
                break
    return out


def tokenizer_of(name: str) -> Any:
    from layerwise.tokens.tokenizer import Tokenizer
    from layerwise.weights.gguf.read import read_metadata

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(gzip.decompress((DATA / f"tokenizers/ggml-vocab-{name}.gguf.gz").read_bytes()))
        file.flush()
        return Tokenizer.from_gguf(read_metadata(pathlib.Path(file.name)))


def paragraphs(texts: list[str]) -> list[str]:
    """Cut behind blank lines, where neither vocabulary has a token across."""
    return [part for text in texts for part in text.split("\n\n")]


def child(who: str, vocabulary: str, characters: int) -> None:
    from layerwise.kinds.text.corpus import tokenise

    texts, tokenizer = books(characters), tokenizer_of(VOCABULARIES[vocabulary])
    n_bytes = sum(len(t.encode()) for t in texts)
    tokenizer.encode_batch(texts[:1])  # threads and caches of both are there
    parts = paragraphs(texts) if who.endswith("paragraphs") else texts
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        if who == OURS:
            corpus = tokenise(texts, tokenizer, folder)
            seconds, n = time.perf_counter() - started, len(corpus.tokens)
            first = corpus.tokens[: corpus.starts[1]].tolist()
        else:
            fast = who.endswith("fast") or who.endswith("paragraphs")
            encode = tokenizer.inner.encode_batch_fast if fast else tokenizer.inner.encode_batch
            rows = [encoding.ids for encoding in encode(parts, add_special_tokens=False)]
            seconds, n = time.perf_counter() - started, sum(map(len, rows))
            first = rows[0]
    special = {tokenizer.eos_id, tokenizer.cls_id, tokenizer.sep_id}
    told = hashlib.sha256(json.dumps([i for i in first if i not in special]).encode()).hexdigest()
    print(
        json.dumps(
            {
                "mb": n_bytes / 1e6 / seconds,
                "tokens": n / seconds,
                "first": told,
                "peak_mb": sidebyside.peak_mb(),
            }
        )
    )


def main() -> None:
    if not (DATA / "text/books.jsonl.xz").exists():
        print(f"skipped: no books at {DATA}; set LAYERWISE_DATA to the data folder")
        return
    quick, rows = "--quick" in sys.argv, []
    for vocabulary in VOCABULARIES:
        arguments = [vocabulary, str(4_000_000 if quick else 12_000_000)]
        runs = sidebyside.rounds(__file__, (OURS, *PEERS), arguments, 1 if quick else 3)
        best = max((w for w in PEERS if w in runs), key=lambda w: sidebyside.median(runs[w], "mb"))
        for who, r in runs.items():
            whole = not who.endswith("paragraphs")
            same = r[0]["first"] == runs[OURS][0]["first"] if whole else "not compared"
            mark = " (best)" if who == best else ""
            rows.append(
                [vocabulary, who, f"{sidebyside.median(r, 'mb'):.2f}",
                 f"{sidebyside.median(r, 'tokens'):,.0f}",
                 f"{sidebyside.ratio(runs[OURS], r, 'mb'):.2f}x{mark}", same,
                 f"{sidebyside.median(r, 'peak_mb'):.0f}"]
            )  # fmt: skip
    sidebyside.markdown(
        ["vocabulary", "who", "MB/s", "tokens/s", "ours / it", "same tokens", "peak MB"], rows
    )


if __name__ == "__main__":
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        child(sys.argv[at + 1], sys.argv[at + 2], int(sys.argv[at + 3]))
    else:
        main()
