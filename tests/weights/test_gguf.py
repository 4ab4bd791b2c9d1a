"""GGUF files: exact against the `gguf` package, both ways, and every way a file can lie."""

import gzip
import re
import struct

import numpy as np
import pytest
import torch

from layerwise.errors import WeightsError
from layerwise.weights.gguf.quants import KINDS, WRITTEN, pack, unpack
from layerwise.weights.gguf.read import read_gguf, read_metadata
from layerwise.weights.gguf.write import kind_for, write_gguf
from layerwise.weights.names import permute_rope, unpermute_rope

TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "\u0120b", "<|end|>", ""],
    "tokenizer.ggml.scores": [0.0, -1.5, 0.25, 3.0],
    "tokenizer.ggml.token_type": [1, 1, 3, 1],
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.precompiled_charsmap": b"\x00\xff\x10",
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def saved(path, metadata=None, kind="F32", **tensors):
    tensors = tensors or {"a": numbers(3, 64)}
    names = {f"{name}.weight": t for name, t in tensors.items()}
    write_gguf(path, {"general.architecture": "llama", **(metadata or {})}, names, kind)
    return path


def refused(path, *patterns: str) -> None:
    with pytest.raises(WeightsError) as caught:
        dict(read_gguf(path)[1])
    for pattern in (re.escape(str(path)), *patterns):
        assert re.search(pattern, str(caught.value)), f"{pattern!r} not in {caught.value}"


# ---- the kinds, against the reference ------------------------------------------------------------
def awkward() -> torch.Tensor:
    """Random rows, and blocks that are zero, tiny, huge, one-sided, on the edge of rounding."""
    rows = numbers(64, 256)
    rows[0] = 0
    rows[1] *= 1e-41
    rows[2] *= 1e3
    rows[3] = rows[3].abs()
    rows[4] = torch.arange(256) * 0.5 - 64
    rows[5, 1:] = 0
    rows[6] = -1.0
    rows[7, ::2] = -rows[7, 1::2]  # the largest is there twice, with both signs
    return rows


@pytest.mark.oracle
@pytest.mark.parametrize("kind", WRITTEN)
def test_packs_bit_for_bit_as_the_reference(kind):
    gguf = pytest.importorskip("gguf")
    number = gguf.GGMLQuantizationType[kind]
    rows = awkward()
    with np.errstate(all="ignore"):
        theirs = gguf.quants.quantize(rows.numpy(), number).view(np.uint8).reshape(-1)
    finite = np.ones(len(theirs), bool)
    if kind in ("Q4_0", "Q8_0"):  # 1 / scale overflows there: the reference's bytes are undefined
        finite = finite.reshape(64, -1)
        finite[1] = False
        finite = finite.reshape(-1)
    ours = pack(rows, KINDS[kind])
    assert np.array_equal(ours[finite], theirs[finite])
    back = unpack(ours, KINDS[kind], (64, 256)).float()
    assert (back[1].abs() <= rows[1].abs().max()).all()
    exact = gguf.quants.dequantize(theirs.reshape(64, -1), number)
    assert torch.equal(back[2:], torch.from_numpy(exact.copy())[2:])


@pytest.mark.oracle
@pytest.mark.parametrize("kind", list(KINDS))
def test_unpacks_exactly_as_the_reference(kind):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(1)
    layout = np.dtype(KINDS[kind].layout)
    raw = rng.integers(0, 256, (512, layout.itemsize), np.uint8)
    if layout.names:  # any bits do, but scales that are no numbers
        blocks = raw.reshape(-1).view(layout)
        for scale in {"d", "dmin"} & set(layout.names):
            blocks[scale] = rng.normal(size=512).astype(np.float16)
    elif kind in ("F32", "F16", "BF16"):
        raw = pack(torch.from_numpy(rng.normal(size=512).astype(np.float32)), KINDS[kind])
    raw = raw.reshape(-1)
    exact = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(-1)
    ours = unpack(raw, KINDS[kind], (len(exact),))
    assert torch.equal(ours.float(), torch.from_numpy(exact.astype(np.float32)))


def test_numbers_that_a_kind_cannot_hold_are_named():
    with pytest.raises(WeightsError, match="'blk' holds numbers that are not finite, which Q8_0"):
        pack(torch.full((1, 32), torch.nan), KINDS["Q8_0"], "'blk'")
    with pytest.raises(WeightsError, match=r"reaches 1e.05, beyond the 65,504 of F16: write BF16"):
        pack(torch.full((1, 32), 1e5), KINDS["F16"], "'blk'")


def test_rows_of_query_and_key_are_permuted_both_ways():
    rows = torch.arange(16.0)[:, None].expand(16, 3)  # 2 heads of 8
    ours = permute_rope(rows, 8)
    assert ours[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(unpermute_rope(ours, 8), rows)
    assert torch.equal(permute_rope(rows[:, 0], 8), ours[:, 0])  # biases alike


# ---- files ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", WRITTEN)
def test_written_and_read_again(tmp_path, kind):
    tensors = {"blk.0.attn_q": numbers(8, 64), "blk.0.attn_norm": numbers(64), "odd": numbers(5, 3)}
    path = saved(tmp_path / "a.gguf", TOKENIZER, kind, **tensors)
    metadata, read = read_gguf(path)
    assert TOKENIZER.items() <= metadata.items() == read_metadata(path).items()
    assert metadata["general.file_type"] == KINDS[kind].file_type
    assert list(read) == [f"{name}.weight" for name in tensors]
    assert torch.equal(read["blk.0.attn_norm.weight"], tensors["blk.0.attn_norm"])
    assert read.entries["odd.weight"].kind.name == ("F16" if kind in ("Q8_0", "Q4_0") else kind)
    assert read.entries["blk.0.attn_q.weight"].kind.name == kind
    largest = tensors["blk.0.attn_q"].abs().max()
    error = (read["blk.0.attn_q.weight"].float() - tensors["blk.0.attn_q"]).abs().max() / largest
    assert error <= {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 5e-3, "Q4_0": 0.13}[kind]
    assert all(e.start % 32 == 0 for e in read.entries.values())


@pytest.mark.oracle
@pytest.mark.parametrize("kind", WRITTEN)
def test_the_reference_reads_what_we_write(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    path = saved(tmp_path / "a.gguf", TOKENIZER, kind, a=numbers(8, 64), b=numbers(2, 3, 32))
    reader = gguf.GGUFReader(path)
    ours = read_gguf(path)[1]
    for tensor in reader.tensors:
        exact = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)
        shape = tuple(int(n) for n in tensor.shape[::-1])
        assert np.array_equal(exact.reshape(shape), ours[tensor.name].float().numpy())
    for key, value in TOKENIZER.items():
        found = reader.get_field(key).contents()
        assert (bytes(found) if isinstance(value, bytes) else found) == value, key


@pytest.mark.oracle
def test_we_read_what_the_reference_writes(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "qwen3")
    writer.add_custom_alignment(64)
    writer.add_array("deep", [[1, 2], [3]])
    writer.add_uint64("large", 2**40)
    writer.add_float64("half", 0.5)
    writer.add_tensor("a.weight", numbers(4, 96).numpy())
    raw = gguf.quants.quantize(numbers(6, 64).numpy(), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, tensors = read_gguf(tmp_path / "b.gguf")
    expected = {"deep": [[1, 2], [3]], "large": 2**40, "half": 0.5, "general.alignment": 64}
    assert expected.items() <= metadata.items()
    assert torch.equal(tensors["a.weight"], numbers(4, 96))
    assert (tensors["b.weight"] - numbers(6, 64)).abs().max() < 0.06


def test_a_tensor_is_read_when_asked_for_and_never_written_to(tmp_path):
    path = saved(tmp_path / "a.gguf", a=numbers(3, 64))
    before = path.read_bytes()
    tensor = read_gguf(path)[1]["a.weight"]
    tensor += 1  # a private copy of the page
    assert path.read_bytes() == before
    half = read_gguf(path, torch.bfloat16)[1]["a.weight"]
    assert half.dtype == torch.bfloat16


def test_what_stays_precise():
    assert kind_for("blk.0.attn_q.weight", (64, 64), "q4_0") == "Q4_0"
    assert kind_for("blk.0.attn_norm.weight", (64,), "Q4_0") == "F32"
    assert kind_for("blk.0.ffn_gate_inp.weight", (8, 64), "Q4_0") == "F32"
    assert kind_for("output.weight", (100, 64), "Q4_0") == "Q8_0"
    assert kind_for("token_embd.weight", (100, 64), "Q4_0") == "Q4_0"
    assert kind_for("token_embd.weight", (100, 64), "Q4_0", tied=True) == "Q8_0"
    assert kind_for("blk.0.ffn_down.weight", (64, 72), "Q8_0") == "F16"
    with pytest.raises(WeightsError, match="unknown kind of GGUF tensor 'Q8_1'; did you mean"):
        kind_for("a.weight", (64, 64), "Q8_1")


def test_what_cannot_be_written_leaves_the_earlier_file(tmp_path):
    path = saved(tmp_path / "a.gguf")
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="not finite"):
        saved(path, kind="Q8_0", a=torch.full((2, 64), torch.inf))
    with pytest.raises(WeightsError, match="'key' is of a type that GGUF does not have"):
        saved(path, {"key": {"a": 1}})
    with pytest.raises(WeightsError, match="needs the key"):
        write_gguf(path, {}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


# ---- files that lie ------------------------------------------------------------------------------
def test_any_truncation_is_an_error_of_ours(tmp_path):
    content = saved(tmp_path / "a.gguf", TOKENIZER).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 400, 7), 700, len(content) - 32, len(content) - 1]:
        cut.write_bytes(content[:size])
        refused(cut)


def test_any_flipped_byte_is_an_error_of_ours_or_harmless(tmp_path):
    content = saved(tmp_path / "a.gguf", {"k": [1, 2], "s": ["x"]}, a=numbers(2, 32)).read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for at in range(4, len(content) - 256):
        for value in (0xFF, 0x7F, content[at] ^ 1):
            damaged.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            try:
                dict(read_gguf(damaged)[1])
            except WeightsError as e:
                assert str(damaged) in str(e)  # noqa: PT017


def patched(path, what: bytes, by: bytes):
    content = path.read_bytes()
    assert content.count(what) == 1
    path.write_bytes(content.replace(what, by))
    return path


def entry(offset: int, kind: int = 0, shape=(64, 3)) -> bytes:
    return b"a.weight" + struct.pack("<IQQIQ", 2, *shape, kind, offset)


def test_lying_tables(tmp_path):
    def lies(by: bytes, *patterns: str) -> None:
        path = saved(tmp_path / "a.gguf", {"key": 1})
        refused(patched(path, entry(0), by), *patterns)

    lies(entry(1 << 40), "'a.weight' is said to end at byte 1,099,5", "download or copy it again")
    lies(entry(7), "starts at 7, not a multiple of 32")
    lies(entry(0, shape=(64, 1 << 60)), "is said to end at byte")
    lies(entry(0, 13), "'a.weight' is stored as Q5_K, which is not read here", "llama-quantize")
    lies(entry(0, 99), "stored as number 99")
    lies(entry(0, 8, (63, 3)), "has rows of 63, not a multiple of 32")
    lies(b"a.weight" + struct.pack("<I", 1000) + bytes(28), "1,000 dimensions")


def test_lying_counts(tmp_path):
    def lies(at: int, number: int, *patterns: str, size: str = "<Q") -> None:
        path = saved(tmp_path / "a.gguf", {"key": 1})
        content = bytearray(path.read_bytes())
        struct.pack_into(size, content, at, number)
        path.write_bytes(content)
        refused(path, *patterns)

    lies(8, 1 << 62, "4,611,686,018,427,387,904 tensors are said to come")
    lies(16, 1 << 62, "the number of keys is said to be 4,6")
    lies(24, 1 << 62, "the length of key 1 of 3 is said to be")
    lies(4, 1, "of version 1", size="<I")
    lies(4, 3 << 24, "big-endian", size="<I")
    long = saved(tmp_path / "b.gguf", {"key": [1] * 9})
    refused(
        patched(long, struct.pack("<IIQ", 9, 5, 9), struct.pack("<IIQ", 9, 5, 1 << 61)), "'key'"
    )


def test_tensors_on_the_same_bytes(tmp_path):
    path = saved(tmp_path / "a.gguf", a=numbers(1, 32), b=numbers(1, 32))
    content = path.read_bytes().replace(
        struct.pack("<QIQ", 1, 0, 128), struct.pack("<QIQ", 1, 0, 64)
    )
    path.write_bytes(content)
    refused(path, "'a.weight' and 'b.weight' lie on the same bytes")


def test_other_files(tmp_path):
    path = tmp_path / "a.gguf"
    for content, said in (
        (b"", "the file is empty"),
        (b"GGUF\3", "truncated, 5 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        (b"<html><body>", "a web page"),
        (b"PK\3\4 and more", "not a GGUF file"),
    ):
        path.write_bytes(content)
        refused(path, said)
    with pytest.raises(WeightsError, match="there is no such file"):
        read_metadata(tmp_path / "none.gguf")
    refused(saved(path, {"split.count": 3}) and _split(path), "part 1 of 3; join them")


def _split(path):
    gguf = {"general.architecture": "llama", "spli_.count": 3, "spli_.no": 0}
    write_gguf(path, gguf, {"a": numbers(1, 32)})
    content = path.read_bytes().replace(b"spli_.", b"split.")
    path.write_bytes(content)
    return path


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "model", "n"),
    [("gpt-2", "gpt2", 50257), ("llama-spm", "llama", 32000), ("bert-bge", "bert", 30522)],
)
def test_published_vocabularies(shared_data, tmp_path, name, model, n):
    path = tmp_path / "a.gguf"
    packed = (shared_data / f"tokenizers/ggml-vocab-{name}.gguf.gz").read_bytes()
    path.write_bytes(gzip.decompress(packed))
    metadata, tensors = read_gguf(path)
    assert metadata["tokenizer.ggml.model"] == model
    assert len(metadata["tokenizer.ggml.tokens"]) == n
    assert not tensors
    write_gguf(tmp_path / "b.gguf", metadata, {})
    again = read_metadata(tmp_path / "b.gguf")
    assert {k: again[k] for k in metadata if k.startswith("tokenizer.")} == {
        k: v for k, v in metadata.items() if k.startswith("tokenizer.")
    }
