"""Why a training goes wrong: rules over what the watch saw, the loss curve and the structure.

A symptom alone is not reported: a small gradient in a network that learns is no fault. Each rule
asks for the cause's own mark (the scale of the fresh weights, the size of the first updates, units
that are silent, weights nothing reaches) together with harm, and a cause silences the faults that
follow from it, so that one fault gives one diagnosis.

`rules.py` holds the rules, `case.py` the measures that they compare with those of `limits.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

from layerwise.data.examples import Batch
from layerwise.inspection import rules, text_rules
from layerwise.inspection.case import Case
from layerwise.inspection.rules import Diagnosis
from layerwise.inspection.signal import chance_loss, likeness, signal
from layerwise.inspection.structure import structure
from layerwise.inspection.texts import is_text, tokenwise
from layerwise.models.network import Network
from layerwise.settings import Settings

RULES: tuple[Callable[[Case], Iterable[Diagnosis]], ...] = (  # causes before consequences
    rules.fp16_underflow, rules.detached_layer, rules.frozen_layer, text_rules.masked_labels,
    text_rules.dead_heads, rules.saturated_units, rules.dead_units, rules.bad_init,
    text_rules.embedding_collapse, text_rules.saturated_attention, rules.vanishing_gradients,
    rules.exploding_gradients, rules.no_residuals, rules.wrong_lr, rules.shuffled_labels,
)  # fmt: skip
ATTENTION = ("saturated_attention", "embedding_collapse")
FLOW = ("vanishing_gradients", "exploding_gradients", "no_residuals")
RATE = ("lr_too_high", "lr_too_low")
EXPLAINS: dict[str, tuple[str, ...]] = {  # a cause and the faults that follow from it
    "fp16_underflow": ("frozen_layer", "dead_units", *FLOW, *RATE, "shuffled_labels"),
    "detached_layer": (*FLOW, *RATE, "frozen_layer"),
    "frozen_layer": (*FLOW, *RATE),
    "saturated_units": ("init_too_large", "init_too_small", *FLOW, *RATE, "shuffled_labels"),
    "dead_units": ("init_too_large", "init_too_small", *FLOW, *RATE, "shuffled_labels"),
    "masked_labels": (),
    "embedding_collapse": ("saturated_attention", *FLOW, *RATE, "shuffled_labels"),
    "saturated_attention": (*FLOW, *RATE, "shuffled_labels"),
    "dead_heads": ("dead_units", "embedding_collapse"),  # the outputs of silent heads are silent
    "init_too_small": (*FLOW, *RATE, "shuffled_labels"),
    "init_too_large": (*ATTENTION, *FLOW, *RATE, "shuffled_labels"),
    "vanishing_gradients": (*FLOW, *RATE, "shuffled_labels"),
    "exploding_gradients": (*FLOW, *RATE, "shuffled_labels"),
    "no_residuals": (*RATE, "shuffled_labels"),
    "lr_too_high": ("shuffled_labels", "lr_too_low"),
    "lr_too_low": ("shuffled_labels",),
    "shuffled_labels": (),
}


def diagnose(
    history: Sequence[dict[str, Any]],
    network: Network | None = None,
    curve: Sequence[dict[str, Any]] = (),
    *,
    probe: Batch | None = None,
    held_out: Batch | None = None,
    lr: float = 0.0,
    optimizer: str = "",
    frozen: Iterable[str] = (),
    stopped: str = "",
) -> list[Diagnosis]:
    """What is wrong with a training, root cause first; empty when it is healthy.

    history: the snapshots of a `Watch`; curve: rows with "step", "loss" as in the run's log (a
    row with "guardian", or a loss that is not finite, marks a breakdown).
    network: lets the rules read its structure, when `probe` is given too.
    probe: a few hundred training rows as the task makes them; held_out: rows it did not train on.
    lr, optimizer: as set; frozen: layers that are not meant to train; stopped: the message with
    which a run ended early.
    """
    if not history:
        return []
    case = Case(history, curve, lr=lr, optimizer=optimizer, frozen=frozenset(frozen))
    case.stopped = stopped
    if probe is not None:
        case.chance = chance_loss(probe)
        if tokenwise(probe):
            case.carried = (probe["targets"] >= 0).double().mean(1).cpu().numpy()
    if probe is not None and network is not None and "targets" in probe.tensors:
        device = str(next(network.parameters()).device)
        probe, held_out = probe.to(device), held_out and held_out.to(device)
        if not is_text(probe):
            some = probe.first(2)
            main = some.main(network.READS)
            beside = {k: t for k, t in some.select(network.READS).items() if t is not main}
            case.structure = structure(network, main, **beside)
        elif not tokenwise(probe):
            case.likeness = likeness(network, held_out or probe)
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


def split_cure(options: dict[str, Any], config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of a cure that is settings, and the part that this family's config has fields for.

    What neither knows is left out: there, fresh weights by the family's own rule are the cure.
    """
    known = {f.name for f in fields(Settings)}
    own = {f.name for f in fields(config)}
    chosen = {k: v for k, v in options.items() if k in known and k not in own}
    return chosen, {k: v for k, v in options.items() if k in own}
