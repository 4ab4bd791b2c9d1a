"""One look at every recording: can it be read, is it whole, is there anything to hear.

Legend: n recordings.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerwise.data.examples import Examples, Finding, Severity
from layerwise.data.groups import first_alike
from layerwise.data.naming import about
from layerwise.data.threads import parallel
from layerwise.errors import DataError
from layerwise.kinds.audio.recordings import Recording, read
from layerwise.kinds.contract import Looks
from layerwise.storage import UNREADABLE, content_hash

FULL_SCALE, CLIPPED = 0.999, 3  # a sample that is cut off; how many in a row are no accident
SILENT = 1e-3  # of full scale, -60 dB: nothing louder is in it

TRAITS: dict[
    str, tuple[Severity, str, str]
] = {  # kind of finding: severity, what is said, what to do
    "unreadable": ("error", "cannot be read and were set aside", "copy them again, or delete them"),
    "truncated": ("error", "end before their header says and were set aside", "copy them again"),
    "silence": ("warning", "hold nothing louder than -60 dB", "look whether they belong here"),
    "clipping": ("warning", "are cut off at full scale (clipping)", "record them less loudly"),
    "stereo": ("note", "have several channels; their mean is used", ""),
    "rate": ("note", "have another sample rate than most and are resampled", ""),
}


@dataclass(frozen=True)
class Seen:
    """What one look at a recording gave."""

    traits: tuple[str, ...] = ()  # keys of TRAITS
    detail: str = ""
    rate: int = 0
    digest: bytes = b""  # of its samples


def look_at(raw: object, name: str) -> Seen:
    """One recording; a bad one is a finding, not an error."""
    try:
        recording = read(raw, name)
    except DataError as e:
        return Seen(("unreadable",), str(e), digest=content_hash(UNREADABLE + os.fsencode(name)))
    digest = content_hash(recording.samples)
    return Seen(traits_of(recording), "", recording.rate, digest)


def traits_of(recording: Recording) -> tuple[str, ...]:
    x = np.abs(recording.samples)
    full = np.flatnonzero(x >= FULL_SCALE)
    together = full[CLIPPED - 1 :] - full[: len(full) - CLIPPED + 1] == CLIPPED - 1
    checks = {
        "truncated": not len(x) or len(x) < recording.promised,
        "silence": bool(len(x)) and x.max() < SILENT,
        "clipping": bool(together.any()),
        "stereo": recording.channels > 1,
    }
    return tuple(name for name, holds in checks.items() if holds)


def look_at_all(examples: Examples) -> Looks:
    values, names = examples["audio"], list(map(str, examples.names))
    each = parallel(min(8, (os.cpu_count() or 1) + 1))
    seen = list(each(lambda i: look_at(values[i], names[i]), range(len(values))))
    findings = findings_of(seen, names)
    keep = np.array([not {"unreadable", "truncated"} & set(s.traits) for s in seen], bool)
    exact = first_alike([s.digest for s in seen])
    return Looks(keep, exact, exact, findings)


def findings_of(seen: Sequence[Seen], names: Sequence[str]) -> list[Finding]:
    """One finding for each trait, with every recording that has it."""
    rates = Counter(s.rate for s in seen if s.rate)
    usual = rates.most_common(1)[0][0] if rates else 0
    found = []
    for trait, (severity, what, cure) in TRAITS.items():
        rows = [i for i, s in enumerate(seen) if trait in s.traits]
        if trait == "rate":
            rows = [i for i, s in enumerate(seen) if s.rate not in (0, usual)]
            what = f"{what} ({usual:,} per second)"
        what = f"of {len(seen):,} recordings {what}"
        listed = [seen[i].detail or names[i] for i in rows]
        found += about(trait, severity, listed, what, cure)
    return found
