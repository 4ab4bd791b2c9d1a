"""The ladder: from the cheapest way of using a pre-trained base to training from scratch.

Rungs: nearest neighbours and a linear probe on the base's features, LoRA (where there are linear
layers below the head), full fine-tuning, from scratch. With a budget the trained rungs compete
(`contenders`). Each rung is scored on the validation rows; the test rows are seen once, by the
winner alone.

Legend: n rows, D features, C classes.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from layerwise import models, runtime
from layerwise.adapt import lora
from layerwise.adapt.quantize import quantize
from layerwise.data.examples import Examples
from layerwise.errors import OptionError
from layerwise.fitting.choose import SMALL_SIDE, Choice, recipe_for
from layerwise.fitting.contenders import (
    Contender,
    Job,
    Rung,
    affordable,
    better,
    compete,
    score_rung,
    worth_going_on,
)
from layerwise.fitting.lens import look, show
from layerwise.fitting.probes import (
    PROBES,
    features_of,
    linear_probe,
    neighbours,
    some_features,
    word_features,
)
from layerwise.kinds.text.windows import padded_length
from layerwise.model.model import Model
from layerwise.planning import Plan, make_plan
from layerwise.planning.memory import lengths_in_turn
from layerwise.settings import Settings
from layerwise.train.loop import parts_of
from layerwise.train.run import fresh, predict_rows

UNSEEN = -30.0  # the logit of a tag that no training word has
SAMPLED = 500  # rows from which a plan takes its example
AHEAD = 4  # batches beside the one that is learned from: two ready, one in the making and its parts


def climb(job: Job, base: Model | None, scratch: Callable[[], Choice]) -> tuple[Contender, list]:
    """Try the rungs that the settings and the base allow; the winner and the whole ladder.

    scratch: gives the choice for training from nothing, only when that rung is reached.
    """
    method = job.settings.method
    rungs: list[Rung] = []
    best: Contender | None = None
    if base is not None:
        put_on_lens(job, base.processor)
    if base is not None and job.task.name in PROBES and method in ("auto", "knn", "probe"):
        best = climb_features(job, base, rungs)
        if method != "auto" or not worth_going_on(job, rungs[-1]):
            return choose_winner(best, rungs)
    if base is not None and job.task.name == "embed" and method in ("auto", "base"):
        best = as_it_is(job, base, rungs)
        if method != "auto":
            return choose_winner(best, rungs)
    make = lambda way: start(job, way, base, scratch, best)  # noqa: E731
    contenders = affordable(job, ways(job, base), make, optional=best is not None)
    trained = compete(job, contenders, rungs) if contenders else None
    if trained is None or (best and best.rung and not better(job, trained.rung, best.rung)):
        assert best is not None
        return choose_winner(best, rungs)
    return choose_winner(trained, rungs)


def put_on_lens(job: Job, processor: Any) -> None:
    """Once in a run, show which tokens of the texts carry loss."""
    if job.lens is None and job.train.kind in ("tokens", "text"):
        job.lens = look(job.train, processor, job.task)
        show(job.lens, job.console)


def ways(job: Job, base: Model | None) -> list[str]:
    """The rungs that train; the one to have where there is time for one alone comes first."""
    method = job.settings.method
    if base is None or method == "scratch":
        return ["scratch"]
    if method in ("lora", "full"):
        return [method]
    if method != "auto":
        raise OptionError(
            f"--method {method} is not for the task {job.task.name}; use lora or full"
        )
    linear = has_linear_below_head(base.network) and job.task.name != "masked"
    return ["full", *(["lora"] if linear else []), *(["scratch"] if job.settings.budget else [])]


def has_linear_below_head(network: nn.Module) -> bool:
    stack = network.layers()  # type: ignore[operator]
    below = [m for name, m in stack.items() if name != "head"]
    return any(isinstance(part, nn.Linear) for m in below for part in m.modules())


def choose_winner(winner: Contender, rungs: list[Rung]) -> tuple[Contender, list[Rung]]:
    assert winner.rung is not None
    winner.rung.chosen = True
    return winner, rungs


# ---- on the base's features ------------------------------------------------------------------


def climb_features(job: Job, base: Model, rungs: list[Rung]) -> Contender:
    """Nearest neighbours and the linear probe; the probe becomes the head of a network."""
    if job.task.name == "words":
        network = climb_words(job, base, rungs)
    else:
        network = climb_rows(job, base, rungs)
    return untrained(job, base, network, rungs[-1], "a linear probe on the base")


def climb_rows(job: Job, base: Model, rungs: list[Rung]) -> nn.Module:
    """Both on one vector for each row; the base with the probe as its head."""
    started = time.monotonic()
    seed = job.settings.seed
    some = job.features or some_features(base, job.train, job.machine, seed, job.most_features)
    known, targets = some.values, np.asarray(job.train.targets)[some.rows]
    asked = features_of(base, job.val, job.machine)
    if job.task.name == "classify":
        outputs = neighbours(known, targets, asked, job.task.n_outputs)
        rungs.append(score_rung(job, "knn", outputs, started, "a yardstick: it keeps all rows"))
    started = time.monotonic()
    weight, bias = linear_probe(known, targets, job.task, seed)
    rungs.append(score_rung(job, "probe", asked @ weight.T + bias, started))
    mean, std = getattr(job.task, "mean", 0.0), getattr(job.task, "std", 1.0)  # `predict` adds them
    return with_head(base.network, job.task, weight / std, (bias - mean) / std)


def climb_words(job: Job, base: Model, rungs: list[Rung]) -> nn.Module:
    """The probe on the vector of each word's first token; the base with it as its head."""
    started, task, seed = time.monotonic(), job.task, job.settings.seed
    vectors, tags = word_features(base, job.train, task, job.machine, seed, job.most_features)
    kinds, codes = np.unique(tags, return_inverse=True)
    weight = np.zeros((task.n_outputs, vectors.shape[1]), np.float32)
    bias = np.full(task.n_outputs, UNSEEN, np.float32)
    if len(kinds) > 1:
        weight[kinds], bias[kinds] = linear_probe(vectors, codes, task, seed)
    network = with_head(base.network, task, weight, bias)
    outputs = predict_rows(network, task, base.processor, job.val, job.machine)
    rungs.append(score_rung(job, "probe", outputs, started))
    return network


def as_it_is(job: Job, base: Model, rungs: list[Rung]) -> Contender:
    """The base's own vectors, nothing trained."""
    started, network = time.monotonic(), copy.deepcopy(base.network)
    reset_head(network, job.task)
    outputs = predict_rows(network, job.task, base.processor, job.val, job.machine)
    rungs.append(score_rung(job, "base", outputs, started, "nothing trained"))
    return untrained(job, base, network, rungs[-1], "the base as it is")


def untrained(job: Job, base: Model, network: nn.Module, rung: Rung, why: str) -> Contender:
    choice = Choice(base.variant, base.family, network.config, base.processor, why)
    recipe = recipe_for(style_of("full", job, choice), len(job.train), 0, job.settings)
    return Contender(rung.name, network, choice, recipe, rung=rung)


def with_head(network: nn.Module, task: Any, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    """A copy of the network with this linear head on its features."""
    network = copy.deepcopy(network)
    reset_head(network, task, pooled=True)
    head = network.head
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight).reshape(head.weight.shape))  # type: ignore[union-attr]
        head.bias.copy_(torch.from_numpy(bias))  # type: ignore[union-attr]
    return network


def reset_head(network: Any, task: Any, pooled: bool = False) -> None:
    """A fresh head for this task, also in the config that is saved with the network.

    pooled: of a text encoder one on the vectors that `features_of` gives. A head for masked words
    is the same whatever text it learned from, and stays.
    """
    kind = getattr(network.config, "head_kind", "")
    if kind and task.head_kind == "masked":
        return None if kind == "masked" else network.reset_head(network.config.n_classes, "masked")
    if kind:
        pooled &= task.head_kind == "class"
        return network.reset_head(task.n_outputs, "pooled" if pooled else task.head_kind)
    network.reset_head(task.n_outputs)
    network.config = replace(network.config, n_classes=task.n_outputs)


# ---- training rungs --------------------------------------------------------------------------


def start(
    job: Job,
    way: str,
    base: Model | None,
    scratch: Callable[[], Choice],
    probe: Contender | None = None,
) -> Contender:
    """A contender before its first step, planned.

    A base of sentence vectors goes on from its probe where there is one: the vector that the probe
    reads is what the base was trained for, its first token is not.
    """
    s = job.settings
    if way == "scratch":
        choice = scratch()
        network = fresh(lambda: models.build(choice.family, choice.config), s.seed)
    else:
        assert base is not None
        alone = s.quantize != "none"  # nothing else needs the base then: it is packed in place
        network = base.network if alone else copy.deepcopy(base.network)
        known = base.task is not None and base.task.name == job.task.name and not job.task.labels
        if probe is not None and getattr(base.network.config, "head_kind", "") == "embed":
            network = copy.deepcopy(probe.network)
        elif not known:
            with runtime.seeded(s.seed, 0x4EAD):
                reset_head(network, job.task)
        if way == "lora":
            adapt_base(network, s, fresh_head=not known)
        choice = Choice(base.variant, base.family, network.config, base.processor, f"{way} on base")
    prepare_network(network, choice, job)
    side = choice.processor.size[0] if job.train.kind == "image" else 0
    style, width = style_of(way, job, choice), getattr(choice.config, "dim", 0)
    recipe = recipe_for(style, len(job.train), side, s, job.mirror, width)
    recipe = replace(recipe, **choice.fitted)
    network = network.to(job.machine.device)
    contender = Contender(way, network, choice, recipe)
    put_on_lens(job, choice.processor)
    contender.plan = plan_contender(job, contender)
    job.on_plan(contender.plan, way)
    return contender


def adapt_base(network: nn.Module, s: Settings, fresh_head: bool) -> None:
    """LoRA as the settings say, on a base in few bits where they ask for it."""
    if s.quantize != "none":
        quantize(network, int(s.quantize))
    options = s.lora_rank, s.lora_alpha, s.lora_variant, s.lora_dropout, s.lora_targets
    lora.add_lora(network, *options, train_head=fresh_head, seed=s.seed)


def style_of(way: str, job: Job, choice: Choice) -> str:
    """Which starting recipe fits."""
    kind = job.train.kind
    if kind in ("text", "tokens"):
        return f"{kind}_{way}"
    if way != "scratch":
        return way
    if kind == "table" or choice.family == "airbench":
        return "table" if kind == "table" else "airbench"
    return "small" if choice.processor.size[0] <= SMALL_SIDE else "scratch"


def prepare_network(network: nn.Module, choice: Choice, job: Job) -> None:
    """What some families compute from the training pixels before the first step."""
    prepare = getattr(models.family(choice.family), "prepare", None)
    if prepare is not None:
        rows = job.train.subset(np.arange(min(5000, len(job.train))))
        prepare(network, choice.processor(rows.inputs))


def plan_contender(job: Job, contender: Contender) -> Plan:
    """What the training takes; of texts, time by usual ones and memory by the longest."""
    r, processor = contender.recipe, contender.choice.processor

    def planned(rows: Examples, measure: bool) -> Plan:
        batch = job.task.batch(rows, processor)
        row = sum(t.nbytes for t in batch.tensors.values()) // len(batch)
        n = r.global_batch_size
        parts = parts_of(job.task, batch, n, r.grad_accum_steps, job.machine.device)
        return make_plan(
            contender.network,
            batch,
            job.task,
            device_batch_size=-(-n // parts),
            optimizer=r.optimizer,
            dtype=job.machine.dtype,
            grad_accum_steps=parts,
            steps=r.steps,
            checkpointing=r.checkpointing,
            ema=bool(r.ema),
            measure=measure,
            extra=AHEAD * n * row,
        )

    some = job.train.subset(np.linspace(0, len(job.train) - 1, SAMPLED).astype(int))
    if some.kind != "text":
        plan = planned(some.subset(np.arange(2)), measure=True)
        return replace(plan, forecast=contender.choice.forecast)
    lengths = np.array([processor.length(row) for row in processor.encode(list(some.inputs))])
    usual = np.argsort(np.abs(lengths - lengths.mean()), kind="stable")[:2]
    largest = planned(some.subset(np.argsort(-lengths, kind="stable")[:2]), measure=False)
    memory, plan = dict(largest.memory), planned(some.subset(usual), measure=True)
    if job.machine.device == "cpu":
        most, n = processor.max_seq_len, r.global_batch_size
        shapes = {  # what lies beyond comes in windows, whole ones
            padded_length(t, most, n) if t <= most else -(-t // most) * most
            for t in lengths.tolist()
        }
        more = lengths_in_turn(largest.trace, len(shapes))
        memory["peak"] = memory["peak"].plus(more)
        request = replace(largest.request, extra=largest.request.extra + int(more.value))
        largest = replace(largest, request=request)
    return replace(plan, memory=memory, request=largest.request)
