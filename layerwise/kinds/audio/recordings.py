"""Recordings as samples: any file that libsndfile reads, brought to one channel and one rate.

Legend: S samples of a recording.
"""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layerwise.errors import DataError
from layerwise.storage import fingerprint

SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .au .caf .w64".split())  # noqa: SIM905
STARTS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"\xff\xfb")
OPEN_END = 0x7FFFF000  # a header with a size from here on was written before the end was known


@dataclass(frozen=True)
class Recording:
    """samples: (S,) float32 from -1 to 1, the mean of its channels. promised: S by its header."""

    samples: np.ndarray
    rate: int  # samples per second
    channels: int = 1
    promised: int = 0

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def is_audio(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def starts_audio(content: bytes) -> bool:
    return content.startswith(STARTS)


def read(raw: Any, name: str) -> Recording:
    """A path, the bytes of a file, or a Recording as it is. Errors: DataError naming it."""
    if isinstance(raw, Recording):
        return raw
    import soundfile

    source = raw if isinstance(raw, str | os.PathLike) else io.BytesIO(raw)
    try:
        with soundfile.SoundFile(source) as file:
            promised = promised_samples(file.frames, file.extra_info)
            samples = file.read(dtype="float32", always_2d=True)  # (S, channels)
            return Recording(samples.mean(1), file.samplerate, file.channels, promised)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as e:
        why = "it is empty" if _is_empty(raw) else str(e).partition(": ")[2] or str(e)
        raise DataError(
            f"{name}: cannot be read as a recording ({why.rstrip('. ')}); copy it again, or "
            "convert it to WAV or FLAC"
        ) from e


def identity(raw: object, name: str) -> str:
    """The same for the same content, of what `read` takes."""
    if isinstance(raw, Recording):
        raw = np.append(raw.samples, np.float32(raw.rate))
    return fingerprint(raw, name)


def promised_samples(frames: int, log: str) -> int:
    """By the header. log: libsndfile's, which notes a size that is not what is there, and then
    counts what is there. A header of a stream, written before its end, promises nothing.
    """
    for said, there in re.findall(r": (\d+) \(should be (\d+)\)", log):
        if int(there) < int(said) < OPEN_END:
            return max(frames + 1, round(frames * int(said) / max(1, int(there))))
    return frames


def _is_empty(raw: object) -> bool:
    path = isinstance(raw, str | os.PathLike)
    return os.path.isfile(raw) and not os.path.getsize(raw) if path else not raw


def resampled(recording: Recording, rate: int) -> np.ndarray:
    """Its samples at this rate: (S',) float32."""
    if recording.rate == rate or not len(recording.samples):
        return recording.samples
    import soxr

    return soxr.resample(recording.samples, recording.rate, rate)
