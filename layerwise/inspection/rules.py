"""The rules of the diagnosis: one function per fault, each with the mark that gives it away.

`diagnosis.py` puts them in order, causes before consequences.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerwise.inspection import limits
from layerwise.inspection.case import Case
from layerwise.inspection.floors import span


@dataclass(frozen=True)
class Diagnosis:
    """One fault, where it is, how it shows, and what to do.

    cure_options: settings or config fields that `fit --cure` changes; empty where only a person can
    act (labels, code).
    """

    fault: str
    layer: str  # "conv1", "conv1 to conv5", or "" for the whole network
    evidence: str
    cure: str
    cure_options: dict[str, Any] = field(default_factory=dict)


def fp16_underflow(case: Case) -> Iterable[Diagnosis]:
    """In half precision, gradients below 6e-8 become zero."""
    looks = [i for i in case.complete if case.history[i].get("dtype") == "float16"]
    if not looks:
        return
    zeros = case.lost_entries(looks[len(looks) // 2])
    share = float(np.median(list(zeros.values())))
    if share < limits.UNDERFLOW:
        return
    where = span([n for n, v in zeros.items() if v >= limits.UNDERFLOW])
    worst = max(zeros, key=zeros.__getitem__)
    yield Diagnosis(
        "fp16_underflow",
        where,
        f"{share:.0%} of the gradient entries are exactly zero in fp16, beside those "
        f"of silent units (worst: {worst} with {zeros[worst]:.0%})",
        "train in bf16 or fp32, whose smallest numbers are far smaller than fp16's",
        {"dtype": "fp32"},
    )


def detached_layer(case: Case) -> Iterable[Diagnosis]:
    """Layers that ask for a gradient and get none: the forward pass cuts the graph above them."""
    if not case.complete:
        return
    layers = case.history[case.complete[-1]]["layers"]
    cut = [n for n, s in layers.items() if s["trainable"] and s["grad_norm"] is None]
    cut = [n for n in cut if n not in case.frozen]
    if cut:
        yield Diagnosis(
            "detached_layer",
            span(cut),
            f"{span(cut)} asks for a gradient but gets none, while the layers above it do",
            f"look in the forward pass for a detach(), no_grad() or .data after {cut[-1]}, or for "
            "a layer whose output is not used",
        )


def frozen_layer(case: Case) -> Iterable[Diagnosis]:
    """Layers that are never updated, though nobody asked for it."""
    looks = [i for i in case.complete if case.values("update_ratio", i)]
    if not looks:
        return
    layers = case.history[looks[-1]]["layers"]
    still = [n for n, s in layers.items() if s["weight_norm"] and n not in case.frozen]
    off = [n for n in still if not layers[n]["trainable"]]
    idle = [n for n in still if layers[n]["update_ratio"] == 0 and pulls(case, looks[-1], n)]
    for names, why in ((off, "takes no gradient"), (idle, "has a gradient but is never updated")):
        if names and len(names) < len(still):
            yield Diagnosis(
                "frozen_layer",
                span(names),
                f"{span(names)} {why}: its update is exactly 0 while other layers move by "
                f"{case.paces[-1] if case.paces else 0:.1e} of their size per step",
                "set requires_grad and hand its parameters to the optimiser (--unfreeze all)",
                {"unfreeze": "all"},
            )


def pulls(case: Case, look: int, name: str) -> bool:
    """Whether a layer's gradient is large enough that an optimiser which has it would move it."""
    flow = case.flow(look)
    return flow.get(name, 0.0) > 1e-4 * max(flow.values(), default=0.0)


def saturated_units(case: Case) -> Iterable[Diagnosis]:
    """Sigmoids in their flat part from the start: a scale too large for them."""
    if not case.poor:
        return
    for i in range(min(3, len(case.history))):
        worst = worst_layers(case.hidden("saturated", i), limits.SATURATED)
        few = len(worst) < len(case.hidden("saturated", i)) / 2
        if few and np.median(list(case.hidden("gain", 0).values()) or [1.0]) > limits.GAIN_HIGH:
            return  # one squashed layer among many: bad_init says why
        if worst and not (
            i and max(case.paces[:i], default=0) > limits.WILD
        ):  # else the rate did it
            share = max(worst.values())
            step = case.history[i]["step"]
            yield Diagnosis(
                "saturated_units",
                span(list(worst)),
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
        n: min(case.hidden("dead", i).get(n, 0.0) for i in late)
        for n in case.hidden("dead", late[0])
    }
    worst = worst_layers(common, limits.DEAD)
    if not worst:
        return
    n, share = max(worst.items(), key=lambda x: x[1])
    at_start = case.hidden("dead", 0).get(n, 0.0) > limits.DEAD
    if not at_start and max(case.paces[:4], default=0) > limits.WILD:
        return  # wrong_lr says it
    yield Diagnosis(
        "dead_units",
        span(list(worst)),
        f"in {n} {share:.0%} of the units are zero for every row"
        + (" from the first step on" if at_start else ", though they were not at the start"),
        "start again from fresh weights with zero biases (Kaiming initialisation) and a lower "
        "learning rate; an activation that never goes silent (GELU) keeps it from coming back",
        {"init": "kaiming", "activation": "gelu", **({} if at_start else {"lr": case.lr / 10})},
    )


def bad_init(case: Case) -> Iterable[Diagnosis]:
    """Fresh weights so small that the signal fades on its way up, or so large that it explodes."""
    gains = case.hidden("gain", 0)
    if not gains or not case.slow:
        return
    gain = float(np.median(list(gains.values())))
    size = case.fade
    if gain < limits.GAIN_LOW and size < limits.FADED:
        how = f"the last hidden layer hands on {size:.1e} of the size of the inputs"
        yield init_diagnosis("init_too_small", gains, gain, how, case)
    elif gain > limits.GAIN_HIGH:
        how = f"the last hidden layer hands on {size:.1e} times the size of the inputs"
        yield init_diagnosis("init_too_large", gains, gain, how, case)


def init_diagnosis(
    fault: str, gains: dict[str, float], gain: float, how: str, case: Case
) -> Diagnosis:
    return Diagnosis(
        fault,
        span(list(gains)),
        f"fresh weights have a scale of {gain:.2g} / sqrt(fan-in), where 0.6 to 1.4 is sound; "
        f"{how}; {case.loss_sentence()}",
        "initialise after Kaiming (He et al. 2015): variance 2/fan-in before a ReLU",
        {"init": "kaiming"},
    )


def vanishing_gradients(case: Case) -> Iterable[Diagnosis]:
    """Gradients that shrink layer by layer on their way down, by squashing activations or scale."""
    if not case.tilts or not case.poor or min(case.tilts) > limits.VANISHED:
        return
    squashing = case.structure.squashing if case.structure else ""
    if case.plain_and_deep and not squashing:
        return  # no_residuals says it
    flow = case.flow(case.complete[0])
    names = list(flow)
    options = {"activation": "relu", "init": "kaiming", **shortcuts(case)}
    yield Diagnosis(
        "vanishing_gradients",
        span(names[: max(1, len(names) // 3)]),
        f"relative to its weights the gradient is {flow[names[0]]:.1e} in {names[0]} and "
        f"{flow[names[-1]]:.1e} in {names[-1]}; {case.loss_sentence()}",
        (f"{squashing} halves the gradient in every layer: use ReLU" if squashing else "use ReLU")
        + " with Kaiming initialisation, and shortcuts around the layers of a deep network",
        options,
    )


def exploding_gradients(case: Case) -> Iterable[Diagnosis]:
    """Gradients or activations that grow layer by layer until no step size fits."""
    if not case.slow or not (
        case.fade > limits.GROWN or max(case.tilts, default=0) > limits.EXPLODED
    ):
        return
    scale = f"activations grow to {case.fade:.1e} times the size of the inputs"
    flow = case.flow(case.complete[0]) if case.complete else {}
    if flow:
        scale += f", and the relative gradient is {max(flow.values()):.1e} at its largest"
    yield Diagnosis(
        "exploding_gradients",
        span(list(flow) or case.names),
        f"{scale} at step {case.history[0]['step']}; {case.loss_sentence()}",
        "normalise between the layers, initialise after Kaiming, and clip the gradient"
        + ("; a stack as deep as this also needs shortcuts" if shortcuts(case) else ""),
        {"norm": "batch", "init": "kaiming", "grad_clip": 1.0, **shortcuts(case)},
    )


def no_residuals(case: Case) -> Iterable[Diagnosis]:
    """Deep and without shortcuts: what reaches the top is nearly the same for every row, or, very
    deep, it learns slowly though initialisation, learning rate and labels are sound."""
    if not case.slow or not case.plain_and_deep:
        return
    assert case.structure is not None
    tilt = case.tilts[0] if case.tilts else None
    seen = case.alike < limits.ALIKE or (tilt is not None and not 1 / 30 < tilt < 30)
    unlabelled = case.signal is not None and case.signal.present is False
    if not seen and (
        case.structure.shortest < limits.VERY_DEEP or unlabelled or not case.sound_pace
    ):
        return
    yield Diagnosis(
        "no_residuals",
        span(case.names),
        f"every way through the network passes {case.structure.shortest} weight layers, none has a "
        f"shortcut; at the top only {case.alike:.1%} of the activations' size differs between rows"
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
    if first > limits.WILD or (most > limits.WILD and (case.broke or case.end > case.start)):
        pace = first if first > limits.WILD else most
        yield Diagnosis(
            "lr_too_high",
            "",
            f"one step changes the weights by {pace:.1%} of their size, where about 1% is sound; "
            + case.loss_sentence(),
            f"lower the learning rate to about {new:g}",
            change,
        )
    elif most < limits.IDLE and not case.broke:
        yield Diagnosis(
            "lr_too_low",
            "",
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
        "",
        f"the network {learned} (loss {case.end:.3g}, guessing gives {case.start:.3g}) while its "
        f"gradients flow; {found.sentence}",
        "the labels do not belong to these rows: check the join between files and labels, and look "
        "at some rows with `layerwise audit`",
    )


def shortcuts(case: Case) -> dict[str, Any]:
    """What a deep stack without shortcuts needs whatever else is wrong with it."""
    return {"residual": True, "norm": "batch"} if case.plain_and_deep else {}


def worst_layers(shares: dict[str, float], least: float) -> dict[str, float]:
    return {n: v for n, v in shares.items() if v >= least}
