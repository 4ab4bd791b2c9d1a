"""llama2.c checkpoints: read, damaged, and the published text reproduced."""

import json
import struct

import numpy as np
import pytest
import torch

from layerwise.errors import WeightsError
from layerwise.tokens.tokenizer import Tokenizer
from layerwise.weights.llama2c import BLOCK, read_llama2c, read_llama2c_tokenizer

D, F, L, H, K, V, T = 16, 40, 2, 4, 2, 7, 6
SIZES = {"D": D, "H": D, "K": K * D // H, "F": F}


def checkpoint(path, tied: bool = True, modern: bool = False, cut: int = 0):
    """A file in the order of the source, numbered so that every number says where it was."""
    shapes = {name: (L, *[SIZES[letter] for letter in form]) for name, form in BLOCK.items()}
    size = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    first = ["embed", *BLOCK, "norm", "turns"] + ([] if tied else ["head"])
    last = ["attn_norm", "mlp_norm", "norm", "embed", *[n for n in BLOCK if "norm" not in n]]
    last += [] if tied else ["head"]
    size |= {"embed": V * D, "norm": D, "turns": T * D // H, "head": V * D}
    header = struct.pack("<7i", D, F, L, H, K, V if tied or modern else -V, T)
    if modern:
        header = (b"24ka" + struct.pack("<i", 1) + header + bytes([tied])).ljust(256, b"\0")
    numbers, places, at = [], {}, 0
    for name in last if modern else first:
        places[name] = torch.arange(at, at + size[name], dtype=torch.float32)
        numbers.append(places[name])
        at += size[name]
    raw = header + torch.cat(numbers).numpy().tobytes()
    path.write_bytes(raw[: len(raw) - cut])
    return path, {
        name: p.reshape(shapes[name]) if name in shapes else p for name, p in places.items()
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("modern", [True, False])
def test_every_tensor_from_its_place(tmp_path, tied, modern):
    path, places = checkpoint(tmp_path / "a.bin", tied, modern)
    config, tensors = read_llama2c(path)
    assert config["tied_head"] is tied
    wanted = {"dim": D, "mlp_dim": F, "n_layers": L, "n_heads": H, "n_kv_heads": K,
              "vocab_size": V, "max_seq_len": T, "head_dim": 4}  # fmt: skip
    assert wanted.items() <= config.items()
    assert len(tensors) == 2 + (not tied) + L * len(BLOCK)
    assert torch.equal(tensors["token_embed.weight"], places["embed"].reshape(V, D))
    assert torch.equal(tensors["blocks.1.mlp.down_proj.weight"], places["mlp.down_proj"][1])
    query = tensors["blocks.1.attn.q_proj.weight"]
    assert torch.equal(query[:4], places["attn.q_proj"][1][[0, 2, 1, 3]])
    assert tied or torch.equal(tensors["head.weight"], places["head"].reshape(V, D))


def test_damaged_checkpoints(tmp_path):
    path, _ = checkpoint(tmp_path / "a.bin", cut=4)
    for pattern in ("should be [0-9,]+ bytes long by its header and is", "cut off"):
        with pytest.raises(WeightsError, match=pattern):
            read_llama2c(path)
    path.write_bytes(b"\1\2\3")
    with pytest.raises(WeightsError, match=r"a.bin: ends within its header, 3 bytes"):
        read_llama2c(path)
    path.write_bytes(b"24ka" + struct.pack("<i", 2) + bytes(300))
    with pytest.raises(WeightsError, match=r"version 2 \(quantised\); export it again"):
        read_llama2c(path)
    path.write_bytes(b"\xff" * 400)
    with pytest.raises(WeightsError, match="its header would mean"):
        read_llama2c(path)


def test_damaged_tokenizers(tmp_path):
    path = tmp_path / "tokenizer.bin"
    tokens = b"".join(
        struct.pack("<fi", 0, len(t)) + t for t in (b"u", b"s", b"e", b" a", b"<0x0A>")
    )
    path.write_bytes(struct.pack("<i", 6) + tokens)
    read = read_llama2c_tokenizer(path, 5)
    assert read["tokenizer.ggml.tokens"] == ["<unk>", "<s>", "</s>", "\u2581a", "<0x0A>"]
    assert read["tokenizer.ggml.token_type"] == [2, 3, 3, 1, 6]
    with pytest.raises(WeightsError, match="5 tokens where the weights have 512; it belongs to"):
        read_llama2c_tokenizer(path, 512)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(WeightsError, match="token 4 is said to be 6 bytes long"):
        read_llama2c_tokenizer(path)


@pytest.mark.data
def test_stories260k_writes_its_published_text(shared_data):
    llama = pytest.importorskip("layerwise.models.llama", reason="the family is not there")
    from layerwise.models import config_from_dict
    from layerwise.weights.files import load_into

    folder = shared_data / "weights/stories260k"
    fields, tensors = read_llama2c(folder / "stories260K.bin")
    network = llama.Model(config_from_dict("llama", fields)).eval()
    load_into(network, tensors)
    reference = json.loads((folder / "greedy_reference.json").read_text("utf-8"))
    ids = list(reference["prompt_ids"])
    wanted = reference["greedy_ids"]
    with torch.inference_mode():
        while len(ids) < len(wanted):
            ids.append(int(network(torch.tensor([ids]))[0, -1].argmax()))
    assert ids == wanted
    tokenizer = Tokenizer.from_gguf(read_llama2c_tokenizer(folder / "tok512.bin", 512))
    assert tokenizer.decode(ids[1:]).strip() == reference["text"].strip()
    assert tokenizer.encode(reference["text"].strip()) == ids
