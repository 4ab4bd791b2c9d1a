"""Recordings for the eye: the waveform above its spectrogram.

Legend: S samples, M mel bands, T frames.
"""

import numpy as np
from torch import Tensor

STOPS = np.array([[10, 12, 30], [76, 29, 107], [187, 55, 84], [249, 142, 9], [252, 255, 164]])
WAVE, INK, PAPER = 24, (60, 90, 160), 245  # height of the waveform, its colour, what is behind
SCALE = 3  # pixels for each mel band and each frame, at most


def coloured(mel: np.ndarray) -> np.ndarray:
    """Values (M, T) as uint8 (M, T, 3): dark where it is quiet, low pitches at the bottom."""
    low, high = np.quantile(mel, (0.05, 0.995))
    x = ((mel - low) / max(high - low, 1e-6)).clip(0, 1)[::-1] * (len(STOPS) - 1)
    at = np.minimum(x.astype(int), len(STOPS) - 2)
    share = (x - at)[..., None]
    return (STOPS[at] * (1 - share) + STOPS[at + 1] * share).astype(np.uint8)


def waveform(samples: np.ndarray, width: int) -> np.ndarray:
    """(S,) samples as uint8 (WAVE, width, 3): how far they swing in each column."""
    loud = np.array([abs(part).max(initial=0) for part in np.array_split(samples, width)])
    swing = loud / max(float(loud.max(initial=0)), 1e-6) * WAVE / 2
    distance = abs(np.arange(WAVE) - (WAVE - 1) / 2)[:, None]
    picture = np.full((WAVE, width, 3), PAPER, np.uint8)
    picture[distance <= np.maximum(swing, 0.5)] = INK
    return picture


def drawn(samples: np.ndarray, mel: Tensor) -> np.ndarray:
    """Both in one picture, uint8 (h, w, 3). mel: (M, T)."""
    spectrogram = coloured(mel.numpy())
    spectrogram = spectrogram.repeat(2, 0).repeat(SCALE, 1)
    return np.concatenate([waveform(samples, spectrogram.shape[1]), spectrogram])
