"""The depth report: one floor of figures per layer, and the sentences that follow from them.

Differences between layers are tested on the same rows and count only beyond two standard errors.
The head is left out of what layers add or lose: it only names what the layer below it knows.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

KNOWN = 0.9  # of the way from chance to the best layer: nearly all that will ever be known
NOTHING = 0.02  # a stretch of layers adds nothing when its gain is surely below this
LOST = 0.5  # of its best R²: a property counts as gone below this
READABLE = 0.3  # R² from which a property counts as readable at all
ALIKE = 0.95  # CKA from which two layers hold the same picture


@dataclass(frozen=True)
class LayerDepth:
    """What one layer knows."""

    name: str
    probe: float  # score of the linear probe on held-out rows: accuracy, or R² for numbers
    error: float  # its standard error
    gain: float  # over the floor below
    gain_error: float  # standard error of that difference, on the same rows
    control: float  # the same probe with shuffled labels
    width: int  # features, after pooling
    effective_rank: float
    reads: dict[str, float] = field(default_factory=dict)  # R² of brightness, colour, edges
    gradient: float | None = None  # its gradient norm in training, when given

    @property
    def adds(self) -> bool:
        return self.gain > 2 * self.gain_error

    @property
    def loses(self) -> bool:
        return self.gain < -2 * self.gain_error


@dataclass(frozen=True)
class DepthReport:
    """The layers from the inputs to the head, and how alike they are."""

    layers: list[LayerDepth]
    cka: list[list[float]]  # (L, L)
    errors: list[list[float]]  # (L, L) standard error of the difference between two probes
    recall: dict[str, list[float]]  # {class: share of its rows the probe names, per layer}
    chance: float  # what always naming the most frequent class scores; 0 for numbers
    score_name: str  # "accuracy" or "r2"
    n_rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report; the sentences are among them."""
        return asdict(self) | {"sentences": self.sentences()}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows for the console."""
        used = [f"{f.effective_rank:.0f} of {f.width}" for f in self.layers]
        rows = [
            [f.name, shown(self, f), number(self, f.control), u]
            for f, u in zip(self.layers, used, strict=True)
        ]
        return ["layer", f"probe {self.score_name}", "labels shuffled", "directions used"], rows

    def sentences(self) -> list[str]:
        """What the numbers say, most important first."""
        parts = (
            where_known,
            idle_floors,
            losses,
            classes_known,
            readings,
            room,
            gradients,
            control,
        )
        return [s for part in parts for s in part(self)]


# ---- sentences -----------------------------------------------------------------------------------


def where_known(report: DepthReport) -> list[str]:
    """Which layer knows most, and by which layer 90% of that is known."""
    first, best = report.layers[0], max(report.layers, key=lambda f: f.probe)
    if best.probe - report.chance < 2 * best.error:
        return [
            f"No layer lets a linear probe beat guessing ({shown(report, best)}, guessing "
            f"{number(report, report.chance)}): nothing about the labels was learned."
        ]
    if best is first:
        top = report.layers[-1]
        return [
            f"No layer knows more than the raw inputs, on which a linear probe reaches "
            f"{shown(report, first)}; on {top.name} it reaches {shown(report, top)}."
        ]
    out = (
        f"{best.name} knows most: a linear probe on it reaches {shown(report, best)}, against "
        f"{shown(report, first)} on the raw inputs"
    )
    bar = report.chance + KNOWN * (best.probe - report.chance)
    floor = next(f for f in report.layers if f.probe >= bar)
    early = floor not in (first, best)
    return [out + (f"; by {floor.name} it is {shown(report, floor)}." if early else ".")]


def idle_floors(report: DepthReport) -> list[str]:
    """Stretches of layers that add nothing: none of them adds or loses beyond two standard errors,
    and the gain of the whole stretch is surely below NOTHING."""
    out = []
    for run in idle_runs(report.layers[1:-1]):
        below, top = report.layers.index(run[0]) - 1, report.layers.index(run[-1])
        before, after = report.layers[below].probe, report.layers[top].probe
        if after - before + 2 * report.errors[below][top] > NOTHING:
            continue  # small steps that may matter together: cannot be told with these rows
        same = report.cka[below][top]
        picture = f"; the picture hardly changes (CKA {same:.2f})" if same >= ALIKE else ""
        out.append(
            f"{span([f.name for f in run])} {'adds' if len(run) == 1 else 'add'} nothing that a "
            f"linear probe can see: {number(report, before)} before, {number(report, after)} after"
            f"{picture}."
        )
    return out


def losses(report: DepthReport) -> list[str]:
    return [
        f"{f.name} loses some of what the layer below it knew: {number(report, f.probe - f.gain)} "
        f"before, {number(report, f.probe)} after."
        for f in report.layers[1:-1]
        if f.loses
    ]


def classes_known(report: DepthReport) -> list[str]:
    """The class told apart in the lowest layer, and in the highest: where each reaches 90% of its
    best recall. Classes that never pass a half are left out."""
    first = {
        label: next(i for i, v in enumerate(values) if v >= KNOWN * max(values))
        for label, values in report.recall.items()
        if max(values) > 0.5
    }
    if len(first) < 2 or min(first.values()) == max(first.values()):
        return []
    early, late = min(first, key=first.__getitem__), max(first, key=first.__getitem__)
    names = [report.layers[first[label]].name for label in (early, late)]
    return [f"'{early}' is told apart first (in {names[0]}), '{late}' last (in {names[1]})."]


def readings(report: DepthReport) -> list[str]:
    """Where a property of the image is read best, and from where on below half of that."""
    out = []
    for name in report.layers[0].reads:
        values = [f.reads[name] for f in report.layers]
        top = int(np.argmax(values[1:])) + 1
        if values[top] < READABLE:
            continue
        best = f"{report.layers[top].name} (R² {values[top]:.2f})"
        bar = LOST * values[top]
        gone = next((i for i in range(top, len(values)) if max(values[i:]) < bar), None)
        rest = "" if gone is None else f"; mostly gone from {report.layers[gone].name} on"
        rest += "" if gone is None else f" (R² {values[gone]:.2f})"
        out.append(f"{name.capitalize()} can be read best in {best}{rest}.")
    return out


def room(report: DepthReport) -> list[str]:
    """The layer that uses the smallest share of its width, inputs and head aside."""
    inner = report.layers[1:-1]
    if not inner:
        return []
    tight = min(inner, key=lambda f: f.effective_rank / f.width)
    used = f"{tight.effective_rank:.0f} of {tight.width} directions"
    return [f"{tight.name} uses its room least: about {used}."]


def gradients(report: DepthReport) -> list[str]:
    flow = [f for f in report.layers if f.gradient is not None]
    if len(flow) < 2 or not flow[-1].gradient:
        return []
    ratio = (flow[0].gradient or 0.0) / flow[-1].gradient
    return [
        f"In training the gradient of {flow[0].name} was {ratio:.2g} times that of {flow[-1].name}."
    ]


def control(report: DepthReport) -> list[str]:
    worst = max(report.layers, key=lambda f: f.control)
    return [
        f"Control: with shuffled labels the same probes score {number(report, worst.control)} at "
        f"most ({worst.name}); guessing scores {number(report, report.chance)}. {report.n_rows:,} "
        "rows, each scored by a probe that was fitted without it."
    ]


def idle_runs(floors: Sequence[LayerDepth]) -> list[list[LayerDepth]]:
    """The longest stretches of neighbours that neither add nor lose anything."""
    stretches = itertools.groupby(floors, lambda f: f.adds or f.loses)
    return [list(stretch) for busy, stretch in stretches if not busy]


def number(report: DepthReport, value: float) -> str:
    return f"{value:.1%}" if report.score_name == "accuracy" else f"R² {value:.2f}"


def shown(report: DepthReport, floor: LayerDepth) -> str:
    twice = 2 * floor.error
    error = f"{twice:.1%}" if report.score_name == "accuracy" else f"{twice:.2f}"
    return f"{number(report, floor.probe)} (± {error})"


def span(names: Sequence[str]) -> str:
    """ "conv1", "conv1 and conv2", "conv1 to conv5"."""
    return " and ".join(names) if len(names) <= 2 else f"{names[0]} to {names[-1]}"
