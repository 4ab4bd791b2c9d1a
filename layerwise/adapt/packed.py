"""A text encoder rewritten for inference on texts of many lengths, on the CPU: nothing is padded.

The tokens of all texts lie end to end, (N, D). Linear layers and norms work on all of them at
once; attention takes the texts of one length together, so it needs no mask. Query, key and value
are one product, the activation is done inside the product's own kernel (an oneDNN post-operation),
and weights are laid out once as these want them. Sums and norms stay in fp32.

Shapes: n texts of one length, T tokens of each, N tokens in all, D width, H heads, Dh head width.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.layers.linear import PLAIN
from layerwise.models.bert import Bert
from layerwise.models.bert import Block as BertBlock
from layerwise.models.network import Network
from layerwise.runtime import Runtime, kernel_dtype, without_autocast

TOKENS = 2048  # of a pack: its widest activations still lie in the processor's cache
ROUND = 16  # tokens are filled up to a multiple: oneDNN writes new kernels for each number
FUSED = 64  # tokens of a single text in bf16 whose attention is better one operation: the products
# that are faster for many want new kernels for each length
ALL_TOKENS, ON_GPU = 32, 8  # usual batches together: only features are of that size; a GPU is wide
WORTH = 64  # texts from which on laying out the weights pays


class PackedBert:
    """Texts to their features, in the dtype asked for; in fp32 where the CPU has no kernels for it.

    The weights are copied: the network may change or be deleted. For the CPU, without gradients.
    """

    def __init__(self, network: Bert, dtype: torch.dtype):
        self.config, self.dtype = network.config, kernel_dtype(dtype)
        embed, first = network.embed, network.embed.first
        self.tokens = embed.token_embed.weight.detach().clone()
        self.places = embed.pos_embed.weight.detach()[first:].clone()
        self.types = None if embed.type_embed is None else embed.type_embed.weight.detach().clone()
        if self.types is not None:  # most texts are the first of a pair
            self.places += self.types[0]
            self.types -= self.types[0].clone()
        self.norm = copy.deepcopy(embed.norm)
        blocks = (block for block in network.blocks if isinstance(block, BertBlock))
        self.blocks = [Block(block, self.dtype) for block in blocks]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Token numbers of texts, in any order, to their pooled features (n, D) float32.

        They are not normalised.
        """
        out = np.empty((len(texts), self.config.dim), np.float32)
        lengths = np.array([len(text) for text in texts], int)
        for rows in packs(np.argsort(lengths, kind="stable"), lengths):
            out[rows] = self.pack([texts[i] for i in rows]).numpy()
        return out

    def pack(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Texts sorted by length: (n, D) fp32."""
        groups = grouped([len(text) for text in texts])
        x = self.stack(torch.from_numpy(np.concatenate(texts)), None, groups)
        pairs = zip(x.split([n * T for n, T in groups]), groups, strict=True)
        whole = [part.unflatten(0, group) for part, group in pairs]  # (n, T, D) each
        first = self.config.pooling == "cls"
        return torch.cat([part[:, 0] if first else part.mean(1) for part in whole])

    def stack(
        self, numbers: Tensor, types: Tensor | None, groups: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Token numbers (N,), and of which text of a pair they are, to features (N, D)."""
        places = [self.places[:T].repeat(n, 1) if n > 1 else self.places[:T] for n, T in groups]
        x = F.embedding(numbers, self.tokens) + torch.cat(places)
        if types is not None and self.types is not None:
            x += F.embedding(types, self.types)
        x = F.pad(self.norm(x), (0, 0, 0, -len(x) % ROUND))
        with without_autocast(self.dtype):
            for block in self.blocks:
                x = block(x, groups)
        return x[: len(numbers)]


class Unpadded:
    """An encoder for evaluation that takes padded batches as the network does, and leaves the
    padding out: the head and all else of the network, its features by `PackedBert`."""

    def __init__(self, network: Bert, dtype: torch.dtype):
        self.network, self.packed = network, PackedBert(network, dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, tokens: Tensor, mask: Tensor | None = None, **places: Tensor) -> Tensor:
        return self.network.score(self.features(tokens, mask, **places), mask)

    def features(self, tokens: Tensor, mask: Tensor | None = None, **places: Tensor) -> Tensor:
        """As `Bert.features`: (B, T, D), zeros where there is padding."""
        token_types = places.get("token_types")
        if places.keys() - {"token_types"} or (mask is not None and mask.ndim != 2):
            return self.network.features(tokens, mask, **places)
        B, T = tokens.shape
        lengths = np.full(B, T) if mask is None else mask.sum(1).numpy()
        out = torch.zeros(B, T, self.network.config.dim)
        order = np.argsort(lengths, kind="stable")
        for rows in packs(order[lengths[order] > 0], lengths):  # some windows are all padding
            chosen = torch.from_numpy(rows)
            here = torch.arange(T) < torch.from_numpy(lengths[rows])[:, None]  # padding is behind
            types = None if token_types is None else token_types[chosen][here]
            groups = grouped(lengths[rows].tolist())
            padded = out.new_zeros(len(rows), T, out.shape[-1])
            padded[here] = self.packed.stack(tokens[chosen][here], types, groups)
            out[chosen] = padded
        return out


def without_padding(network: Network, machine: Runtime, n: int) -> Network:
    """The network in its packed form where it is an encoder on the CPU, of plain layers, and the
    `n` texts to come are worth it; else the network."""
    if not isinstance(network, Bert) or n < WORTH or machine.device != "cpu":
        return network
    linears = (m for m in network.blocks.modules() if isinstance(m, nn.Linear))
    plain = all(type(m) in PLAIN for m in linears)  # no adapters, nothing quantised
    return cast(Network, Unpadded(network, machine.dtype)) if plain else network


def at_once(network: Network, machine: Runtime) -> int:
    """How many usual batches of evaluation this network takes together."""
    return ALL_TOKENS if isinstance(network, Unpadded) else 1 if machine.device == "cpu" else ON_GPU


def grouped(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """How many texts in succession have how many tokens, of lengths that grow."""
    return [(len(list(same)), T) for T, same in groupby(lengths)]


class Block:
    """One of Bert's blocks on (N, D)."""

    def __init__(self, block: BertBlock, dtype: torch.dtype):
        attn = block.attn
        self.dtype, self.n_heads = dtype, attn.n_heads
        qkv = joined(attn.q_proj, attn.k_proj, attn.v_proj, attn.n_heads)
        self.qkv = PackedLinear(qkv, dtype, TOKENS)
        self.o_proj = PackedLinear(attn.o_proj, dtype, TOKENS)
        self.fc1 = PackedLinear(block.fc1, dtype, TOKENS, "gelu")
        self.fc2 = PackedLinear(block.fc2, dtype, TOKENS)
        self.attn_norm = copy.deepcopy(block.attn_norm)
        self.mlp_norm = copy.deepcopy(block.mlp_norm)

    def __call__(self, x: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:  # (N, D) fp32
        sizes = [n * T for n, T in groups]
        *parts, rest = self.qkv(x.to(self.dtype)).split([*sizes, len(x) - sum(sizes)])
        texts = [self.attend(part, *group) for part, group in zip(parts, groups, strict=True)]
        mixed = torch.cat([*texts, rest[:, : x.shape[1]]])
        x = self.attn_norm(x + self.o_proj(mixed))
        return self.mlp_norm(x + self.fc2(self.fc1(x.to(self.dtype))))

    def attend(self, qkv: Tensor, n: int, T: int) -> Tensor:
        """Query, key and value side by side (n T, 3 D), of n texts: (n T, D)."""
        heads = qkv.view(n, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # (3, n, H, T, Dh)
        if n == 1 and T <= FUSED and qkv.dtype == torch.bfloat16:
            q, k, v = heads
            mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
            return mixed.transpose(1, 2).reshape(T, -1)
        q, k, v = heads.reshape(3, n * self.n_heads, T, -1)
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)  # (n H, T, T)
        mixed = torch.bmm(weights, v).view(n, self.n_heads, T, -1)
        return mixed.transpose(1, 2).reshape(n * T, -1)


class PackedLinear(nn.Module):
    """A linear layer through oneDNN, its weight laid out once for batches of `rows`; as PyTorch has
    it where oneDNN does not take it.

    post: "gelu" or "none".
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, rows: int, post: str = "none"):
        super().__init__()
        self.post = post
        weight = linear.weight.detach().to(dtype)
        packed = laid_out(weight, rows)
        self.packed, self.weight = packed is not None, weight.clone() if packed is None else packed
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            y = F.linear(x, self.weight, self.bias)
            return F.gelu(y) if self.post == "gelu" else y
        exact = "none" if self.post == "gelu" else ""  # not its approximation by tanh
        args = (self.weight, self.bias, self.post, [], exact)
        return torch.ops.mkldnn._linear_pointwise(x, *args)


def laid_out(weight: Tensor, rows: int) -> Tensor | None:
    """The weight as oneDNN's kernels for so many rows want it; None where it has none for it."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    except (RuntimeError, NotImplementedError):
        return None


def joined(q: nn.Linear, k: nn.Linear, v: nn.Linear, n_heads: int) -> nn.Linear:
    """The three as one layer, the scale of the products already in the query's part."""
    scale = (q.out_features // n_heads) ** -0.5
    out = nn.Linear(q.in_features, 3 * q.out_features)
    with torch.no_grad():
        out.weight.copy_(torch.cat([q.weight * scale, k.weight, v.weight]))
        out.bias.copy_(torch.cat([q.bias * scale, k.bias, v.bias]))
    return out


def packs(order: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive texts in this order with up to TOKENS tokens together, at least one text."""
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + TOKENS, side="right")))
        yield order[start:stop]
        start = stop
