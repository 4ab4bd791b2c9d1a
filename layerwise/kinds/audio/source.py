"""Recordings as tensors: decoded once into a file of samples that is mapped into memory.

Shapes: n rows, B rows of a batch, S samples, M mel bands, T frames.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from layerwise import runtime
from layerwise.data.examples import Examples
from layerwise.data.sources import Draw, Source, Tensors
from layerwise.data.threads import parallel
from layerwise.errors import unknown
from layerwise.kinds.audio.processor import AudioProcessor
from layerwise.kinds.audio.recordings import identity
from layerwise.storage import cache_folder, replacing

PIECE = 256  # recordings decoded before they are written


@dataclass(frozen=True)
class Augment:
    """What is changed at random. shift: in time, a share of the recording; gain: louder or softer,
    in decibels; noise: at least so many decibels below its loudest moment; bands, frames: shares of
    them that are blanked in stripes (SpecAugment: Park et al., arXiv:1904.08779).
    """

    shift: float = 0.1
    gain: float = 6.0
    noise: float = 30.0
    bands: float = 0.15
    frames: float = 0.15

    def of_samples(self, x: Tensor, draw: torch.Generator) -> Tensor:
        """(B, S) samples."""
        B, S = x.shape
        u = torch.rand(B, 3, generator=draw) * 2 - 1
        moves = (u[:, 0] * self.shift * S).long()
        place = torch.arange(S) - moves[:, None]
        moved = x.gather(1, place.clamp(0, S - 1)) * ((place >= 0) & (place < S))
        loudness = 10 ** (u[:, 1:2] * self.gain / 20)
        level = 10 ** (-(self.noise + 10 * (u[:, 2:] + 1)) / 20) * moved.abs().amax(1, True)
        return moved * loudness + torch.randn(B, S, generator=draw) * level

    def of_mel(self, mel: Tensor, draw: torch.Generator) -> Tensor:
        """(B, 1, M, T), blanked with each recording's mean."""
        B, _, M, T = mel.shape
        keep = torch.ones(B, M, T, dtype=torch.bool)
        for size, share, axis in ((M, self.bands, 1), (T, self.frames, 2)):
            u = torch.rand(B, 2, generator=draw)
            width = (u[:, 0] * share * size).round()
            start = (u[:, 1] * (size - width)).floor()
            place = torch.arange(size)
            stripe = (place >= start[:, None]) & (place < (start + width)[:, None])
            keep &= ~stripe.unsqueeze(3 - axis)
        mean = mel.mean((1, 2, 3), keepdim=True)
        return torch.where(keep[:, None], mel, mean)


def augment_named(name: str) -> Augment | None:
    """Errors: OptionError for one that is not for recordings."""
    known = {"none": None, "light": Augment(bands=0.0, frames=0.0), "full": Augment()}
    if name not in known:
        raise unknown("augmentation of recordings", name, known)
    return known[name]


class Recordings(Source):
    """Log-mel spectrograms, of samples decoded once (cached=False: each time)."""

    def __init__(
        self,
        examples: Examples,
        processor: AudioProcessor,
        augment: Augment | None,
        dtype: torch.dtype,
        cache_dir: str | Path | None = None,
        threads: int = 1,
        cached: bool = True,
        **options: object,
    ):
        self.n, self.processor = len(examples), processor
        self.augment, self.dtype = augment, dtype
        self.examples, self.each = examples, parallel(threads)
        self.stored = self.store(cache_folder(cache_dir)) if cached and self.n else None

    def decode(self, row: int) -> np.ndarray:
        return self.processor.samples(self.examples["audio"][row], str(self.examples.names[row]))

    def store(self, folder: Path) -> np.ndarray:
        """The samples of every row, (n, S) int16, from the cache or decoded now."""
        values, names = self.examples["audio"], self.examples.names
        keys = [identity(x, str(name)) for x, name in zip(values, names, strict=True)]
        p = self.processor
        digest = hashlib.blake2b(json.dumps([p.rate, p.n_samples, keys]).encode(), digest_size=12)
        path = folder / f"{digest.hexdigest()}.samples"
        if not path.exists():
            with replacing(path) as partial, partial.open("wb") as file:
                for start in range(0, self.n, PIECE):
                    rows = range(start, min(start + PIECE, self.n))
                    samples = np.stack(list(self.each(self.decode, rows)))
                    file.write((samples.clip(-1, 1) * 32767).round().astype(np.int16).tobytes())
        return np.memmap(path, np.int16, "r", shape=(self.n, p.n_samples))

    def samples(self, rows: np.ndarray) -> Tensor:
        """(B, S) float32."""
        if self.stored is not None:
            return torch.from_numpy(self.stored[rows].astype(np.float32) / 32767)
        return torch.from_numpy(np.stack(list(self.each(self.decode, rows.tolist()))))

    def look(self, rows: np.ndarray) -> Tensors:
        return {"audio": self.processor.features(self.samples(rows)).to(self.dtype)}

    def learn(self, rows: np.ndarray, draw: Draw, learned: Tensors) -> Tensors:
        if self.augment is None:
            return self.look(rows)
        generator = runtime.generator(draw.seed, draw.step)
        samples = self.augment.of_samples(self.samples(rows), generator)
        mel = self.augment.of_mel(self.processor.features(samples), generator)
        return {"audio": mel.to(self.dtype)}
