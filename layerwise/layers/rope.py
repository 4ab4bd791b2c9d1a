"""Rotary positions: each pair of coordinates of a query or key rotates by position x frequency.

Papers: Su et al., "RoFormer", arXiv:2104.09864. Longer contexts than trained on: "linear", Chen et
al., arXiv:2306.15595; "yarn", Peng et al., arXiv:2309.00071; "llama3", Llama 3.1's own (Grattafiori
et al., arXiv:2407.21783, in the reference code of `llama-models`).

Coordinates i and i + Dh/2 are a pair, as in Hugging Face's files (llama2.c and GGUF: 2i and 2i+1).

Shapes: B batch, T positions, Dh head width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import OptionError, unknown

CosSin = tuple[Tensor, Tensor]  # of the rotary angles, both (1 or B, 1, T, Dh/2)
SCALINGS = ("", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """Radians per position of each pair. Plain numbers: they need no device and no place in a file.

    magnitude: cosine and sine are multiplied by it (yarn sharpens attention so).
    """

    frequencies: tuple[float, ...]  # (Dh/2,)
    magnitude: float = 1.0

    def __call__(self, positions: Tensor) -> CosSin:
        """positions: (T,) or (B, T) whole numbers. The angles' cosine and sine in fp32."""
        frequencies = torch.tensor(self.frequencies, device=positions.device)
        angles = positions.float()[..., None] * frequencies  # (.., T, Dh/2)
        angles = angles.unsqueeze(-3)  # (1 or B, 1, T, Dh/2): the same for every head
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude


def rotate(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Queries or keys (B, H, T, Dh), each pair of coordinates rotated by its angle."""
    cos, sin = (t.to(x.dtype) for t in cos_sin)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@dataclass(frozen=True)
class RopeFields:
    """What the Config of a decoder says of its rotary positions.

    rope_scaling: "" as trained; "linear" divides all frequencies by the factor; "llama3" and "yarn"
        divide those with fewer than `low` turns within the length it was trained on, keep those
        with more than `high`, and blend between: llama3 by the number of turns, yarn by the index
        of the pair.
    rope_magnitude: of yarn; 0 is the paper's 0.1 ln(factor) + 1.
    """

    rope_theta: float = 10_000.0
    rope_scaling: str = ""
    rope_factor: float = 1.0
    rope_original_len: int = 0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_magnitude: float = 0.0


def make_rope(head_dim: int, f: RopeFields) -> Rope:
    """The frequencies theta^(-2i/Dh), those that turn too slowly for the trained length stretched.

    Errors: OptionError for an unknown scaling, or one without the length it was trained on.
    """
    scaling, factor, magnitude = f.rope_scaling, f.rope_factor, 1.0
    if scaling not in SCALINGS:
        raise unknown("rope_scaling", scaling, SCALINGS)
    if scaling in ("llama3", "yarn") and f.rope_original_len < 1:
        raise OptionError(f"rope_scaling {scaling!r} needs rope_original_len, the trained length")
    frequencies = f.rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling == "linear":
        kept = np.zeros_like(frequencies)
    elif scaling == "llama3":
        turns = f.rope_original_len * frequencies / (2 * math.pi)
        kept = np.clip((turns - f.rope_low) / (f.rope_high - f.rope_low), 0, 1)
    elif scaling == "yarn":
        kept = _yarn_kept(head_dim, f)
        magnitude = f.rope_magnitude or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    else:
        kept = np.ones_like(frequencies)
    frequencies = frequencies * (kept + (1 - kept) / factor)
    return Rope(tuple(frequencies.tolist()), magnitude)


def _yarn_kept(head_dim: int, f: RopeFields) -> np.ndarray:
    """How much of each frequency stays: 1 up to the pair of `high` turns, 0 from that of `low`."""

    def pair_of(turns: float) -> float:
        ratio = f.rope_original_len / (turns * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(f.rope_theta))

    first = max(math.floor(pair_of(f.rope_high)), 0)
    last = min(math.ceil(pair_of(f.rope_low)), head_dim - 1)
    ramp = (np.arange(head_dim // 2) - first) / max(last - first, 1e-3)
    return 1 - np.clip(ramp, 0, 1)
