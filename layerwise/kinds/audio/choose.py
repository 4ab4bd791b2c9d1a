"""Which network, processor, recipe and augmentation recordings are learned with from nothing."""

from typing import Any

import numpy as np

from layerwise import models
from layerwise.data.examples import Examples
from layerwise.errors import DataError, OptionError
from layerwise.kinds.audio.processor import AudioProcessor
from layerwise.kinds.audio.recordings import Recording, read
from layerwise.kinds.contract import Choice, Ends, Start
from layerwise.settings import Settings

SAMPLED, MEASURED = 200, 500  # recordings whose length, and whose loudness, are looked at
COVERED = 0.99  # of the recordings are heard whole, if that is within LONGEST
LONGEST = 10.0  # seconds of a recording that are heard, where nobody says it
RATES = (8_000, 16_000)  # that speech and most sounds are learned at
WINDOW, HOP, N_MELS = 0.032, 0.010, 40  # seconds of a window, between two; mel bands
START = Start(2e-3, 64, 30, weight_decay=0.05, flexible=True)


def some_of(examples: Examples, most: int) -> Examples:
    n = min(most, len(examples))
    return examples.subset(np.unique(np.linspace(0, len(examples) - 1, n).astype(int)))


def readable(examples: Examples) -> list[Recording]:
    """Of a sample of the rows. Errors: DataError where none can be read."""
    some, found = some_of(examples, SAMPLED), []
    for raw, name in zip(some["audio"], some.names, strict=True):
        try:
            found.append(read(raw, str(name)))
        except DataError:  # the audit lists them
            continue
    if not found:
        raise DataError(f"none of the recordings in {examples.source} could be read")
    return found


def processor_for(examples: Examples) -> AudioProcessor:
    """The rate of most recordings, at most 16,000; a length that holds nearly all of them."""
    found = readable(examples)
    usual = float(np.median([r.rate for r in found]))
    rate = next((r for r in RATES if usual <= r), RATES[-1])
    seconds = min(LONGEST, float(np.quantile([r.seconds for r in found], COVERED)))
    hop = round(HOP * rate)
    n_fft = 1 << round(np.log2(WINDOW * rate))
    n_samples = max(n_fft, hop * int(np.ceil(seconds * rate / hop)))
    plain = AudioProcessor(rate, n_samples, n_fft, hop, N_MELS)
    mean, std = statistics(some_of(examples, MEASURED), plain)
    return AudioProcessor(rate, n_samples, n_fft, hop, N_MELS, round(mean, 4), round(std, 4))


def statistics(examples: Examples, processor: AudioProcessor) -> tuple[float, float]:
    """Mean and standard deviation of all values of the spectrograms."""
    values: list[Any] = []
    for raw, name in zip(examples["audio"], examples.names, strict=True):
        try:
            values.append(read(raw, str(name)))
        except DataError:
            continue
    mel = processor(values)
    return float(mel.mean()), max(float(mel.std()), 1e-3)


def network_for(examples: Examples, ends: Ends, settings: Settings) -> Choice:
    """A network with fresh weights for these recordings.

    Errors: OptionError for a network by name that does not read them.
    """
    processor = processor_for(examples)
    name, why = "tc_resnet14_15", "recordings: a small network of convolutions over time"
    if settings.model != "auto":
        name, why = settings.model, "as asked"
    known = models.variants()
    if name in known and "audio" not in models.reads(known[name]):
        raise OptionError(f"--model {name} does not read recordings; {recordings_of(known)} do")
    family, config = models.resolve(name, n_mels=processor.n_mels, n_classes=ends.n_outputs)
    return Choice(name, family, config, {"audio": processor}, why)


def recordings_of(known: dict[str, str]) -> str:
    return ", ".join(n for n, family in known.items() if "audio" in models.reads(family))
