"""The logarithmic mel spectrogram: how loud each pitch is at each moment.

Filters: triangles that are equally wide in mel, after Slaney's Auditory Toolbox (1998): linear up
to 1 kHz, logarithmic above, each of the same area. They equal those that Whisper publishes
(arXiv:2212.04356).

Shapes: B recordings, S samples, M mel bands, T frames, F frequencies of a Fourier transform.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LINEAR_HZ, BREAK_HZ, BREAK_MEL = 200 / 3, 1000.0, 15.0  # of a mel below the break; the break
STEP = np.log(6.4) / 27.0  # of a mel above it, in logarithms
QUIET = 1e-5  # power that counts as silence


def mel_of(hz: np.ndarray) -> np.ndarray:
    above = BREAK_MEL + np.log(np.maximum(hz, BREAK_HZ) / BREAK_HZ) / STEP
    return np.where(hz < BREAK_HZ, hz / LINEAR_HZ, above)


def hz_of(mel: np.ndarray) -> np.ndarray:
    above = BREAK_HZ * np.exp(STEP * (np.maximum(mel, BREAK_MEL) - BREAK_MEL))
    return np.where(mel < BREAK_MEL, mel * LINEAR_HZ, above)


@cache
def mel_filters(rate: int, n_fft: int, n_mels: int) -> Tensor:
    """(M, F) float32, F = n_fft / 2 + 1."""
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)  # (F,)
    edges = hz_of(np.linspace(0, mel_of(np.array(rate / 2)), n_mels + 2))  # (M + 2,)
    width = np.diff(edges)[:, None]
    rising = (bins - edges[:-2, None]) / width[:-1]  # (M, F)
    falling = (edges[2:, None] - bins) / width[1:]
    area = 2 / (edges[2:] - edges[:-2])
    filters = np.maximum(0, np.minimum(rising, falling)) * area[:, None]
    return torch.from_numpy(filters.astype(np.float32))


def log_mel(samples: Tensor, rate: int, n_fft: int, hop: int, n_mels: int) -> Tensor:
    """(B, S) samples to (B, M, T) natural logarithms of power, T = 1 + S // hop."""
    window = torch.hann_window(n_fft)
    padded = F.pad(samples[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    power = spectrum.abs().square()  # (B, F, T)
    return (mel_filters(rate, n_fft, n_mels) @ power).clamp_min(QUIET).log()
