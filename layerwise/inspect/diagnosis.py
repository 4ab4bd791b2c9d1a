"""Why a training goes wrong: rules over what the watch saw, the loss curve and the network's structure.

A symptom alone is not reported: a small gradient in a network that learns is no fault. Each rule
asks for the cause's own mark (the scale of the fresh weights, the size of the first updates, units
that are silent, weights nothing reaches) together with harm, and a cause silences the faults that
follow from it, so that one fault gives one diagnosis.

Legend: "chance" is the loss of the best constant answer; the "fall" is the share of it that training
has removed; a layer's relative gradient is the norm of its gradient over the norm of its weights.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from layerwise.data.examples import Batch
from layerwise.inspect.signal import Signal, chance_loss, signal
from layerwise.inspect.structure import Structure, structure

# Thresholds, set on the development half of bench/diagnosis.py
POOR_FALL = 0.15  # a training that removed less of the chance loss than this has not learned
DEAD, SATURATED = 0.75, 0.5  # share of a layer's units
GAIN_LOW, GAIN_HIGH = 0.25, 3.0  # of fresh weights; sound starts lie between 0.5 and 1.5
FADED, GROWN = 0.02, 30.0  # size of the last hidden activations over that of the inputs
VANISHED, EXPLODED = 1e-3, 1e3  # relative gradient of the lowest layers over that of the highest
DEEP = 12  # weight layers without a shortcut
ALIKE = 0.02  # spread below which a layer hands on nearly the same for every row
WILD, IDLE = 0.15, 5e-4  # update over weights per step: far too large, far too small
AIM = {"sgd": 3e-3, "": 8e-3}  # the update ratio that a corrected learning rate aims at
UNDERFLOW = 0.6  # share of gradient entries that are exactly zero, in fp16


@dataclass(frozen=True)
class Diagnosis:
    """One fault, where it is, how it shows, and what to do.

    cure_options: settings or config fields that `fit --cure` changes; empty where only a person can
    act (labels, code).
    """

    fault: str
    layers: tuple[str, ...]
    evidence: str
    cure: str
    cure_options: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> str:
        """The layers in a word: "conv1", "conv1 to conv5" or ""."""
        return span(self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "layers": list(self.layers),
            "evidence": self.evidence,
            "cure": self.cure,
            "cure_options": dict(self.cure_options),
        }


@dataclass
class Case:
    """All that is known of a training, and what follows from it."""

    history: Sequence[dict[str, Any]]
    curve: Sequence[dict[str, Any]] = ()
    structure: Structure | None = None
    signal: Signal | None = None
    chance: float | None = None
    lr: float = 0.0
    optimizer: str = ""
    frozen: frozenset[str] = frozenset()
    stopped: str = ""

    @cached_property
    def names(self) -> list[str]:
        return list(self.history[0]["layers"])

    @cached_property
    def losses(self) -> np.ndarray:
        """The finite training losses, in order."""
        rows = self.curve or self.history
        values = [float(r["loss"]) for r in rows if r.get("loss") is not None]
        return np.array([v for v in values if math.isfinite(v)])

    @cached_property
    def broke(self) -> bool:
        """Whether a loss or gradient was not finite."""
        marks = any("guardian" in r or not finite(r.get("loss")) for r in self.curve)
        return bool(self.stopped) or marks

    @cached_property
    def start(self) -> float:
        return float(self.chance or (np.median(self.losses[:3]) if len(self.losses) else math.nan))

    @cached_property
    def end(self) -> float:
        tail = max(3, len(self.losses) // 8)
        return float(np.median(self.losses[-tail:])) if len(self.losses) else math.nan

    @cached_property
    def fall(self) -> float:
        return (self.start - self.end) / self.start if self.start else 0.0

    @cached_property
    def poor(self) -> bool:
        return self.broke or not self.fall > POOR_FALL

    def loss_sentence(self) -> str:
        if self.broke:
            return "loss or gradient stopped being finite"
        return f"the loss stands at {self.end:.3g}, where guessing gives {self.start:.3g}"

    def values(self, key: str, look: int) -> dict[str, float]:
        """{layer: value} of one look, layers without a value left out."""
        layers = self.history[look]["layers"]
        return {n: s[key] for n, s in layers.items() if finite(s.get(key)) and s[key] is not None}

    def hidden(self, key: str, look: int) -> dict[str, float]:
        """The same without the last layer, whose outputs are the answer."""
        return {n: v for n, v in self.values(key, look).items() if n != self.names[-1]}

    def flow(self, look: int) -> dict[str, float]:
        """{layer: relative gradient} of the layers that train and have matrices."""
        norms, weights = self.values("grad_norm", look), self.values("weight_norm", look)
        gains = self.values("gain", look)
        return {n: g / weights[n] for n, g in norms.items() if weights.get(n) and n in gains}

    def tilt(self, look: int) -> float | None:
        """Relative gradient of the lowest third of the layers over that of the highest third."""
        flow = [v for v in self.flow(look).values()]
        if len(flow) < 4:
            return None
        third = max(1, len(flow) // 3)
        low, high = np.median(flow[:third]), np.median(flow[-third:])
        return float(low / high) if high > 0 else None

    @cached_property
    def complete(self) -> list[int]:
        """Looks whose gradients were read."""
        return [i for i, _ in enumerate(self.history) if self.values("grad_norm", i)]

    def pace(self, look: int) -> float | None:
        """Median update ratio of the layers that moved."""
        moved = [v for v in self.values("update_ratio", look).values() if v > 0]
        return float(np.median(moved)) if moved else None

    @cached_property
    def paces(self) -> list[float]:
        return [p for i in range(len(self.history)) if (p := self.pace(i)) is not None]

    def aimed_lr(self) -> float:
        """A learning rate whose first updates have a sound size against the weights."""
        aim = AIM.get(self.optimizer, AIM[""])
        look = next((i for i in range(len(self.history)) if self.pace(i)), None)
        if look is None:
            return self.lr / 10
        used = self.history[look].get("lr") or self.lr
        return float(f"{used * aim / (self.pace(look) or aim):.2g}")


Rule = Callable[[Case], Iterable[Diagnosis]]


def diagnose(
    history: Sequence[dict[str, Any]],
    curve: Sequence[dict[str, Any]] = (),
    *,
    network: nn.Module | None = None,
    probe: Batch | None = None,
    held_out: Batch | None = None,
    chance: float | None = None,
    lr: float = 0.0,
    optimizer: str = "",
    frozen: Iterable[str] = (),
    stopped: str = "",
) -> list[Diagnosis]:
    """What is wrong with a training, root cause first; empty when it is healthy.

    history: the looks of a `Watch`; curve: rows with "step", "loss" as the run's log has them (a
    row with "guardian", or a loss that is no number, marks a breakdown).
    network: lets the rules read its structure, when `probe` is given too.
    probe: a few hundred training rows as the task makes them; held_out: rows it did not train on.
    chance: loss of the best constant answer (from `probe` when left out); lr, optimizer: as set.
    frozen: layers that are not meant to train; stopped: the message with which a run ended early.
    """
    if not history:
        return []
    case = Case(history, curve, lr=lr, optimizer=optimizer, frozen=frozenset(frozen))
    case.stopped, case.chance = stopped, chance
    if probe is not None:
        case.chance = chance if chance is not None else chance_loss(probe)
        if network is not None:
            case.structure = structure(network, probe["inputs"][:2])
    if probe is not None and network is not None:
        case.signal = signal(network, probe, held_out)
    return ranked(case)


def ranked(case: Case) -> list[Diagnosis]:
    """Every rule in causal order; what a cause already explains is left out."""
    found: list[Diagnosis] = []
    silenced: set[str] = set()
    for rule in RULES:
        for diagnosis in rule(case):
            if diagnosis.fault not in silenced:
                found.append(diagnosis)
                silenced |= set(EXPLAINS[diagnosis.fault])
    return found


# ---- the rules, causes before consequences -------------------------------------------------------


def fp16_underflow(case: Case) -> Iterable[Diagnosis]:
    """In half precision, gradients below 6e-8 become zero."""
    looks = [i for i in case.complete if case.history[i].get("dtype") == "float16"]
    if not looks:
        return
    zeros = case.values("zero_grad", looks[len(looks) // 2])
    share = float(np.median(list(zeros.values())))
    if share < UNDERFLOW:
        return
    where = tuple(n for n, v in zeros.items() if v >= UNDERFLOW)
    yield Diagnosis(
        "fp16_underflow",
        where,
        f"{share:.0%} of the gradient entries are exactly zero in 16-bit arithmetic (worst: "
        f"{max(zeros, key=zeros.__getitem__)} with {max(zeros.values()):.0%})",
        "train in bf16 or fp32, whose smallest numbers are far smaller than fp16's",
        {"dtype": "fp32"},
    )


def detached_layer(case: Case) -> Iterable[Diagnosis]:
    """Layers that ask for a gradient and get none: the forward pass cuts the graph above them."""
    last = case.complete[-1:] and case.history[case.complete[-1]]["layers"]
    cut = [n for n, s in (last or {}).items() if s["trainable"] and s["grad_norm"] is None]
    cut = [n for n in cut if n not in case.frozen]
    if cut:
        yield Diagnosis(
            "detached_layer",
            tuple(cut),
            f"{span(cut)} asks for a gradient but gets none, while the layers above it do",
            f"look in the forward pass for a detach(), no_grad() or .data after {cut[-1]}, or for a "
            "layer whose output is not used",
        )


def frozen_layer(case: Case) -> Iterable[Diagnosis]:
    """Layers that are never updated, though nobody asked for it."""
    looks = [i for i in case.complete if case.values("update_ratio", i)]
    if not looks:
        return
    layers = case.history[looks[-1]]["layers"]
    still = [n for n, s in layers.items() if s["weight_norm"] and n not in case.frozen]
    off = [n for n in still if not layers[n]["trainable"]]
    idle = [n for n in still if layers[n]["update_ratio"] == 0 and (layers[n]["grad_norm"] or 0) > 0]
    for names, why in ((off, "takes no gradient"), (idle, "has a gradient but is never updated")):
        if names and len(names) < len(still):
            yield Diagnosis(
                "frozen_layer",
                tuple(names),
                f"{span(names)} {why}: its update is exactly 0 while other layers move by "
                f"{case.paces[-1] if case.paces else 0:.1e} of their size per step",
                "set requires_grad and hand its parameters to the optimiser (--unfreeze all)",
                {"unfreeze": "all"},
            )


def saturated_units(case: Case) -> Iterable[Diagnosis]:
    """Sigmoids in their flat part from the start: a scale too large for them."""
    if not case.poor:
        return
    for i in range(min(3, len(case.history))):
        worst = worst_layers(case.hidden("saturated", i), SATURATED)
        if worst and not case.paces[: i and 1] > [WILD]:
            share = max(worst.values())
            step = case.history[i]["step"]
            yield Diagnosis(
                "saturated_units",
                tuple(worst),
                f"in {span(list(worst))} {share:.0%} of the units sit in the flat part of their "
                f"sigmoid or tanh at step {step}, where the slope is below 0.04; "
                + case.loss_sentence(),
                "replace the activation by ReLU with Kaiming initialisation, or make the fresh "
                "weights (or the inputs) smaller",
                {"activation": "relu", "init": "kaiming"},
            )
            return


def dead_units(case: Case) -> Iterable[Diagnosis]:
    """ReLUs that are zero for every row; after wild updates that is the learning rate's doing."""
    late = [i for i in range(len(case.history)) if case.hidden("dead", i)][-3:]
    if not late:
        return
    common = {
        n: min(case.hidden("dead", i).get(n, 0.0) for i in late) for n in case.hidden("dead", late[0])
    }
    worst = worst_layers(common, DEAD)
    if not worst:
        return
    n, share = max(worst.items(), key=lambda x: x[1])
    at_start = case.hidden("dead", 0).get(n, 0.0) > DEAD
    if not at_start and max(case.paces[:4], default=0) > WILD:
        return  # too_high_lr says it
    yield Diagnosis(
        "dead_units",
        tuple(worst),
        f"in {n} {share:.0%} of the units are zero for every row"
        + (" from the first step on" if at_start else ", though they were not at the start"),
        "start again from fresh weights with zero biases (Kaiming initialisation) and a lower "
        "learning rate; an activation that never goes silent (GELU) keeps it from coming back",
        {"init": "kaiming", "activation": "gelu", **({} if at_start else {"lr": case.lr / 10})},
    )


def bad_init(case: Case) -> Iterable[Diagnosis]:
    """Fresh weights so small that the signal fades on its way up, or so large that it explodes."""
    gains = case.hidden("gain", 0)
    if not gains or not case.poor:
        return
    gain = float(np.median(list(gains.values())))
    size = fade(case)
    if gain < GAIN_LOW and size < FADED:
        how = f"the last hidden layer hands on {size:.1e} of the size of the inputs"
        yield init_diagnosis("init_too_small", gains, gain, how, case)
    elif gain > GAIN_HIGH:
        how = f"the last hidden layer hands on {size:.1e} times the size of the inputs"
        yield init_diagnosis("init_too_large", gains, gain, how, case)


def init_diagnosis(
    fault: str, gains: dict[str, float], gain: float, how: str, case: Case
) -> Diagnosis:
    return Diagnosis(
        fault,
        tuple(gains),
        f"fresh weights have a scale of {gain:.2g} times 1/sqrt(fan-in), where 0.6 to 1.4 is sound; "
        f"{how}; {case.loss_sentence()}",
        "initialise after Kaiming (He et al. 2015): variance 2/fan-in before a ReLU",
        {"init": "kaiming"},
    )


def vanishing_gradients(case: Case) -> Iterable[Diagnosis]:
    """Gradients that shrink layer by layer on their way down, by squashing activations or scale."""
    tilts = [t for i in case.complete[:3] if (t := case.tilt(i)) is not None]
    if not tilts or not case.poor or min(tilts) > VANISHED:
        return
    squashing = case.structure.squashing if case.structure else ""
    if plain_and_deep(case) and not squashing:
        return  # no_residuals says it
    flow = case.flow(case.complete[0])
    names = list(flow)
    options: dict[str, Any] = {"activation": "relu", "init": "kaiming"}
    if case.structure and case.structure.longest >= DEEP and not case.structure.residual:
        options |= {"residual": True, "norm": "batch"}
    yield Diagnosis(
        "vanishing_gradients",
        tuple(names[: max(1, len(names) // 3)]),
        f"relative to its weights the gradient is {flow[names[0]]:.1e} in {names[0]} and "
        f"{flow[names[-1]]:.1e} in {names[-1]}; {case.loss_sentence()}",
        (f"{squashing} halves the gradient in every layer: use ReLU" if squashing else "use ReLU")
        + " with Kaiming initialisation, and shortcuts around the layers of a deep network",
        options,
    )


def exploding_gradients(case: Case) -> Iterable[Diagnosis]:
    """Gradients or activations that grow layer by layer until no step size fits."""
    tilts = [t for i in case.complete[:3] if (t := case.tilt(i)) is not None]
    size = fade(case)
    grown = size > GROWN and case.poor
    if not case.poor or not (grown or (tilts and max(tilts) > EXPLODED)):
        return
    scale = f"activations grow to {size:.1e} times the size of the inputs"
    flow = case.flow(case.complete[0]) if case.complete else {}
    if flow:
        scale += f", and the relative gradient is {max(flow.values()):.1e} at its largest"
    yield Diagnosis(
        "exploding_gradients",
        tuple(flow) or tuple(case.names),
        f"{scale} at step {case.history[0]['step']}; {case.loss_sentence()}",
        "normalise between the layers, initialise after Kaiming, and clip the gradient",
        {"norm": "batch", "init": "kaiming", "grad_clip": 1.0},
    )


def no_residuals(case: Case) -> Iterable[Diagnosis]:
    """Deep, without shortcuts, and what reaches the top is nearly the same for every row."""
    if not case.poor or not plain_and_deep(case):
        return
    assert case.structure is not None
    spread = case.hidden("spread", 0)
    top = list(spread)[-max(1, len(spread) // 3) :]
    alike = float(np.median([spread[n] for n in top])) if top else 1.0
    tilt = case.tilt(case.complete[0]) if case.complete else None
    steep = tilt is not None and not 1 / 30 < tilt < 30
    if alike > ALIKE and not steep:
        return
    yield Diagnosis(
        "no_residuals",
        tuple(case.names),
        f"every way through the network passes {case.structure.shortest} weight layers, none has a "
        f"shortcut; at the top only {alike:.1%} of the activations' size differs between rows"
        + (f", the gradient at the bottom is {tilt:.1e} of that at the top" if tilt else "")
        + f"; {case.loss_sentence()}",
        "add shortcuts around the layers (residual) with normalisation, or use fewer layers",
        {"residual": True, "norm": "batch"},
    )


def wrong_lr(case: Case) -> Iterable[Diagnosis]:
    """Updates far too large or too small against the weights they change."""
    if not case.poor or not case.paces:
        return
    first, most = max(case.paces[:4]), max(case.paces)
    new = case.aimed_lr()
    change = {"lr": new} if new > 0 else {}
    if first > WILD or (most > WILD and (case.broke or case.end > case.start)):
        pace = first if first > WILD else most
        yield Diagnosis(
            "lr_too_high",
            (),
            f"one step changes the weights by {pace:.1%} of their size, where about 1% is sound; "
            + case.loss_sentence(),
            f"lower the learning rate to about {new:g}",
            change,
        )
    elif most < IDLE and not case.broke:
        yield Diagnosis(
            "lr_too_low",
            (),
            f"one step changes the weights by {most:.1e} of their size, where about 1% is sound; "
            f"gradients flow, but {case.loss_sentence()}",
            f"raise the learning rate to about {new:g}",
            change,
        )


def shuffled_labels(case: Case) -> Iterable[Diagnosis]:
    """Nothing in the rows foretells their labels: neither to the network nor to simple probes."""
    found = case.signal
    if found is None or found.present is not False:
        return
    learned = "learned its rows by heart" if case.fall > 0.5 else "cannot beat guessing on its rows"
    yield Diagnosis(
        "shuffled_labels",
        (),
        f"the network {learned} (loss {case.end:.3g}, guessing gives {case.start:.3g}) while its "
        f"gradients flow; {found.sentence}",
        "the labels do not belong to these rows: check the join between files and labels, and look "
        "at some rows with `layerwise audit`",
    )


RULES: tuple[Rule, ...] = (
    fp16_underflow,
    detached_layer,
    frozen_layer,
    saturated_units,
    dead_units,
    bad_init,
    vanishing_gradients,
    exploding_gradients,
    no_residuals,
    wrong_lr,
    shuffled_labels,
)
FLOW = ("vanishing_gradients", "exploding_gradients", "no_residuals")
RATE = ("lr_too_high", "lr_too_low")
EXPLAINS: dict[str, tuple[str, ...]] = {  # a cause and the faults that follow from it
    "fp16_underflow": ("frozen_layer", "dead_units", *FLOW, *RATE, "shuffled_labels"),
    "detached_layer": (*FLOW, *RATE, "frozen_layer"),
    "frozen_layer": (*FLOW, *RATE),
    "saturated_units": ("init_too_large", "init_too_small", *FLOW, *RATE, "shuffled_labels"),
    "dead_units": ("init_too_large", "init_too_small", *FLOW, *RATE, "shuffled_labels"),
    "init_too_small": (*FLOW, *RATE, "shuffled_labels"),
    "init_too_large": (*FLOW, *RATE, "shuffled_labels"),
    "vanishing_gradients": (*FLOW, *RATE, "shuffled_labels"),
    "exploding_gradients": (*FLOW, *RATE, "shuffled_labels"),
    "no_residuals": (*RATE, "shuffled_labels"),
    "lr_too_high": ("shuffled_labels", "lr_too_low"),
    "lr_too_low": ("shuffled_labels",),
    "shuffled_labels": (),
}


# ---- measures ------------------------------------------------------------------------------------


def fade(case: Case) -> float:
    """Size of the last hidden activations over that of the inputs, at the first look."""
    sizes = case.hidden("act_std", 0)
    inputs = case.history[0].get("inputs", {}).get("std") or 1.0
    return list(sizes.values())[-1] / inputs if sizes else 1.0


def plain_and_deep(case: Case) -> bool:
    s = case.structure
    return s is not None and not s.residual and s.shortest >= DEEP


def worst_layers(shares: dict[str, float], least: float) -> dict[str, float]:
    return {n: v for n, v in shares.items() if v >= least}


def finite(value: Any) -> bool:
    """Whether a value is a finite number; None counts as finite: it was not measured."""
    try:
        return value is None or math.isfinite(float(value))
    except ValueError:
        return False


def span(names: Sequence[str]) -> str:
    """ "conv1", "conv1 and conv2", "conv1 to conv5"."""
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]} to {names[-1]}"


def split_cure(options: dict[str, Any], config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of a cure that is settings, and the part that this family's config has fields for.

    What neither knows is left out: there, fresh weights by the family's own rule are the cure.
    """
    from dataclasses import fields

    from layerwise.settings import Settings

    known = {f.name for f in fields(Settings)}
    own = {f.name for f in fields(config)}
    return (
        {k: v for k, v in options.items() if k in known and k not in own},
        {k: v for k, v in options.items() if k in own},
    )
