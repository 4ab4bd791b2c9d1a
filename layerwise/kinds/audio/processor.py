"""Recordings to log-mel spectrograms of one length, the same in training and when serving.

Shapes: B recordings, S samples, M mel bands, T frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.errors import OptionError, unknown
from layerwise.kinds.audio.mel import log_mel
from layerwise.kinds.audio.recordings import read, resampled

KEYS = {  # Hugging Face's names in preprocessor_config.json -> ours
    "sampling_rate": "rate", "feature_size": "n_mels", "n_fft": "n_fft", "hop_length": "hop",
    "n_samples": "n_samples", "mean": "mean", "std": "std",
}  # fmt: skip
TYPE = "LogMelFeatureExtractor"


@dataclass(frozen=True)
class AudioProcessor:
    """rate: samples per second. n_samples: S; what is shorter is filled with silence at both ends,
    what is longer is cut at both. n_fft, hop: samples of a window, and between two. mean, std: of
    the training recordings' values, brought to 0 and 1.
    """

    rate: int = 16_000
    n_samples: int = 16_000
    n_fft: int = 512
    hop: int = 160
    n_mels: int = 40
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.n_samples < self.n_fft:
            raise OptionError(
                f"recordings of {self.n_samples} samples are shorter than one window of "
                f"{self.n_fft}; are they recordings of sound?"
            )

    @property
    def n_frames(self) -> int:
        return 1 + self.n_samples // self.hop

    def samples(self, raw: object, name: str) -> np.ndarray:
        """Of a path, bytes or Recording: (S,) float32. Errors: DataError naming it."""
        return fitted(resampled(read(raw, name), self.rate), self.n_samples)

    def features(self, samples: Tensor) -> Tensor:
        """(B, S) to the network's input (B, 1, M, T)."""
        mel = log_mel(samples, self.rate, self.n_fft, self.hop, self.n_mels)
        return ((mel - self.mean) / self.std)[:, None]

    def __call__(self, values: Sequence[Any]) -> Tensor:
        """Paths, bytes or Recordings to (B, 1, M, T)."""
        rows = [self.samples(raw, f"recording {i + 1}") for i, raw in enumerate(values)]
        return self.features(torch.from_numpy(np.stack(rows)))

    def to_dict(self) -> dict[str, Any]:
        """As in a `preprocessor_config.json`."""
        own = asdict(self)
        return {"feature_extractor_type": TYPE} | {theirs: own[k] for theirs, k in KEYS.items()}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "AudioProcessor":
        """Errors: OptionError for another feature extractor, or a key that is not known."""
        values = dict(config)
        if (found := values.pop("feature_extractor_type", TYPE)) != TYPE:
            raise unknown("feature extractor", found, [TYPE])
        for key in values:
            if key not in KEYS:
                raise unknown("key of an audio preprocessor_config.json", key, KEYS)
        return cls(**{KEYS[key]: value for key, value in values.items()})


def fitted(samples: np.ndarray, n: int) -> np.ndarray:
    """(n,): the middle of what is longer, silence around what is shorter."""
    spare = len(samples) - n
    if spare >= 0:
        return np.ascontiguousarray(samples[spare // 2 : spare // 2 + n])
    return np.pad(samples, (-spare // 2, -spare - -spare // 2))
