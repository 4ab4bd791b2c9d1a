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
    half = [i for i in case.complete if case.history[i].get("dtype") == "float16"]
    if not half:
        return
    zeros = case.lost_entries(half[len(half) // 2])
    share, worst = float(np.median(list(zeros.values()))), max(zeros, key=zeros.__getitem__)
    if share >= limits.UNDERFLOW:
        yield Diagnosis(
            "fp16_underflow",
            span(list(at_least(zeros, limits.UNDERFLOW))),
            f"{share:.0%} of the gradient entries are exactly zero in fp16, beside those "
            f"of silent units (worst: {worst} with {zeros[worst]:.0%})",
            "train in bf16 or fp32, whose smallest numbers are far smaller than fp16's",
            {"dtype": "fp32"},
        )


def detached_layer(case: Case) -> Iterable[Diagnosis]:
    """Layers that require a gradient and get none: the forward pass cuts the graph above them."""
    layers = case.history[case.complete[-1]]["layers"] if case.complete else {}
    cut = [n for n, s in layers.items() if s["trainable"] and s["grad_norm"] is None]
    cut = [n for n in cut if n not in case.frozen]
    if cut:
        yield Diagnosis(
            "detached_layer",
            span(cut),
            f"{span(cut)} requires a gradient but gets none, while the layers above it do",
            f"in the forward pass, check for a detach(), no_grad() or .data after {cut[-1]}, or "
            "for a layer whose output is not used",
        )


def frozen_layer(case: Case) -> Iterable[Diagnosis]:
    """Layers that are never updated, though nobody asked for it."""
    updated = [i for i in case.complete if case.values("update_ratio", i)]
    if not updated:
        return
    layers, flow = case.history[updated[-1]]["layers"], case.flow(updated[-1])
    pull = 1e-4 * max(flow.values(), default=0.0)  # gradients that an optimiser would follow
    still = [n for n, s in layers.items() if s["weight_norm"] and n not in case.frozen]
    off = [n for n in still if not layers[n]["trainable"]]
    idle = [n for n in still if layers[n]["update_ratio"] == 0 and flow.get(n, 0.0) > pull]
    for names, why in ((off, "takes no gradient"), (idle, "has a gradient but is never updated")):
        if names and len(names) < len(still):
            yield Diagnosis(
                "frozen_layer",
                span(names),
                f"{span(names)} {why}: its update is exactly 0 while other layers move by "
                f"{case.paces[-1] if case.paces else 0:.1e} of their size per step",
                "set requires_grad and give its parameters to the optimiser (--unfreeze all)",
                {"unfreeze": "all"},
            )


def saturated_units(case: Case) -> Iterable[Diagnosis]:
    """Sigmoids in their flat part from the start: a scale too large for them."""
    for i in range(min(3, len(case.history)) if case.poor else 0):
        shares = case.hidden("saturated", i)
        worst, gains = at_least(shares, limits.SATURATED), case.hidden("gain", 0)
        large = np.median(list(gains.values()) or [1.0]) > limits.GAIN_HIGH
        if len(worst) < len(shares) / 2 and large:
            return  # one squashed layer among many: bad_init says why
        if worst and not case.wild(i):  # else the learning rate did it
            where, step = span(list(worst)), case.history[i]["step"]
            yield Diagnosis(
                "saturated_units",
                where,
                f"in {where} {max(worst.values()):.0%} of the units sit in the flat part of their "
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
    worst = at_least(case.always("dead", late), limits.DEAD)
    worst.pop(case.names[-1], None)  # its outputs are the answer
    if not worst:
        return
    n, share = max(worst.items(), key=lambda x: x[1])
    at_start = case.hidden("dead", 0).get(n, 0.0) > limits.DEAD
    if not at_start and case.wild(4):
        return  # wrong_lr says it
    yield Diagnosis(
        "dead_units",
        span(list(worst)),
        f"in {n} {share:.0%} of the units are zero for every row"
        + (" from the first step on" if at_start else ", though they were not at the start"),
        "start again from fresh weights with zero biases (Kaiming initialisation) and a lower "
        "learning rate; an activation that never goes silent (GELU) prevents it",
        {"init": "kaiming", "activation": "gelu", **({} if at_start else {"lr": case.lr / 10})},
    )


def bad_init(case: Case) -> Iterable[Diagnosis]:
    """Fresh weights so small that the signal fades on its way up, or so large that it explodes."""
    gains = case.hidden("gain", 0)
    if not gains or not case.slow:
        return
    gain, size = float(np.median(list(gains.values()))), case.fade
    small = gain < limits.GAIN_LOW and size < limits.FADED
    if small or gain > limits.GAIN_HIGH:
        yield Diagnosis(
            "init_too_small" if small else "init_too_large",
            span(list(gains)),
            f"fresh weights have a scale of {gain:.2g} / sqrt(fan-in), where 0.6 to 1.4 is sound; "
            f"the outputs of the last hidden layer have {size:.1e} {'of' if small else 'times'} "
            f"the size of the inputs; {case.loss_sentence()}",
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
    yield Diagnosis(
        "vanishing_gradients",
        span(names[: max(1, len(names) // 3)]),
        f"relative to its weights the gradient is {flow[names[0]]:.1e} in {names[0]} and "
        f"{flow[names[-1]]:.1e} in {names[-1]}; {case.loss_sentence()}",
        (f"{squashing} halves the gradient in every layer: use ReLU" if squashing else "use ReLU")
        + " with Kaiming initialisation, and shortcuts around the layers of a deep network",
        {"activation": "relu", "init": "kaiming", **shortcuts(case)},
    )


def exploding_gradients(case: Case) -> Iterable[Diagnosis]:
    """Gradients or activations that grow layer by layer until no step size fits."""
    explode = max(case.tilts, default=0) > limits.EXPLODED
    if not case.slow or not (case.fade > limits.GROWN or explode):
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
    depth, tilt = case.structure.shortest, case.tilts[0] if case.tilts else None
    seen = case.alike < limits.ALIKE or (tilt is not None and not 1 / 30 < tilt < 30)
    unlabelled = case.signal is not None and case.signal.present is False
    if not seen and (depth < limits.VERY_DEEP or unlabelled or not case.sound_pace):
        return
    yield Diagnosis(
        "no_residuals",
        span(case.names),
        f"every path through the network passes {depth} weight layers, and none has a shortcut; at "
        f"the top only {case.alike:.1%} of the activations' size differs between rows"
        + (f", the gradient at the bottom is {tilt:.1e} of that at the top" if tilt else "")
        + f"; {case.loss_sentence()}",
        "add shortcuts around the layers (residual) with normalisation, or use fewer layers",
        {"residual": True, "norm": "batch"},
    )


def wrong_lr(case: Case) -> Iterable[Diagnosis]:
    """Updates far too large or too small against the weights they change."""
    if not case.poor or not case.paces:
        return
    most, new = max(case.paces), case.aimed_lr()
    high = case.wild(4) or (most > limits.WILD and (case.broke or case.end > case.start))
    pace = max(case.paces[:4]) if case.wild(4) else most
    if high or (most < limits.IDLE and not case.broke):
        yield Diagnosis(
            "lr_too_high" if high else "lr_too_low",
            "",
            f"one step changes the weights by {f'{pace:.1%}' if high else f'{pace:.1e}'} of their "
            f"size, where about 1% is sound; {'' if high else 'gradients flow, but '}"
            + case.loss_sentence(),
            f"{'lower' if high else 'raise'} the learning rate to about {new:g}",
            {"lr": new} if new > 0 else {},
        )


def shuffled_labels(case: Case) -> Iterable[Diagnosis]:
    """Neither the network nor simple probes can predict the labels of the rows."""
    found = case.signal
    if found is None or found.present is not False:
        return
    learned = "memorised its rows" if case.fall > 0.5 else "cannot beat guessing on its rows"
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


def at_least(shares: dict[str, float], least: float) -> dict[str, float]:
    return {n: v for n, v in shares.items() if v >= least}
