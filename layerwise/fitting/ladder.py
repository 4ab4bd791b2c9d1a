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

from layerwise import kinds, models, runtime
from layerwise.adapt import lora
from layerwise.adapt.quantize import quantize
from layerwise.data.examples import Examples
from layerwise.errors import OptionError
from layerwise.fitting.contenders import affordable, better, compete, score_rung, worth_going_on
from layerwise.fitting.job import Contender, Job
from layerwise.fitting.lens import lens_of, show
from layerwise.fitting.probes import features_of, some_features, word_features
from layerwise.fitting.recipes import recipe_for
from layerwise.kinds.contract import Choice
from layerwise.model.model import Model
from layerwise.models.network import Network, head_kind
from layerwise.planning import Plan, make_plan
from layerwise.planning.memory import lengths_in_turn
from layerwise.planning.scaling import Forecast
from layerwise.settings import Settings
from layerwise.tasks import probes
from layerwise.tasks.feed import Feed, batch_of
from layerwise.tasks.task import Task
from layerwise.train.loop import parts_of
from layerwise.train.predicting import predict_rows
from layerwise.train.run import fresh

UNSEEN = -30.0  # the logit of a tag that no training word has
SAMPLED = 500  # rows from which a plan takes its example
AHEAD = 4  # batches beside the one that is learned from: two ready, one in the making and its parts
PREPARED = 5000  # rows from which a family computes what it starts from
Fresh = Callable[[], tuple[Choice, Forecast | None]]


def climb(job: Job, base: Model | None, scratch: Fresh) -> Contender:
    """Try the rungs that the settings and the base allow; the winner.

    scratch: gives the choice for training from nothing, only when that rung is reached.
    """
    method = job.settings.method
    best: Contender | None = None
    if base is not None:
        put_on_lens(job, base.processors)
    if base is not None and job.task.probe and method in ("auto", "knn", "probe"):
        best = climb_features(job, base)
        if method != "auto" or not worth_going_on(job, job.rungs[-1]):
            return chosen(best)
    if base is not None and job.task.works_untrained and method in ("auto", "base"):
        best = untrained_base(job, base)
        if method != "auto":
            return chosen(best)
    make = lambda way: new_contender(job, way, base, scratch, best)  # noqa: E731
    contenders = affordable(job, ways(job, base), make, optional=best is not None)
    trained = compete(job, contenders) if contenders else None
    if trained is None or (best and best.rung and not better(job, trained.rung, best.rung)):
        assert best is not None
        return chosen(best)
    return chosen(trained)


def put_on_lens(job: Job, processors: dict[str, Any]) -> None:
    """Once in a run, show which tokens of the texts carry loss."""
    if job.lens is None:
        job.lens = lens_of(job.train, processors, job.task)
        if job.lens is not None:
            show(job.lens, job.console)


def ways(job: Job, base: Model | None) -> list[str]:
    """The rungs that train; the one to have where there is time for one alone comes first."""
    method = job.settings.method
    if base is None or method == "scratch":
        return ["scratch"]
    if method in ("lora", "full"):
        return [method]
    if method != "auto":
        what = f"--method {method} is not for the task {job.task.name}"
        raise OptionError(f"{what}; use lora or full")
    linear = has_linear_below_head(base.network) and job.task.with_lora
    return ["full", *(["lora"] if linear else []), *(["scratch"] if job.settings.budget else [])]


def has_linear_below_head(network: Network) -> bool:
    below = [m for name, m in network.layers().items() if name != "head"]
    return any(isinstance(part, nn.Linear) for m in below for part in m.modules())


def chosen(winner: Contender) -> Contender:
    assert winner.rung is not None
    winner.rung.chosen = True
    return winner


# ---- on the base's features ------------------------------------------------------------------


def climb_features(job: Job, base: Model) -> Contender:
    """Nearest neighbours and the linear probe; the probe becomes the head of a network."""
    network = (climb_words if job.task.each_token else climb_rows)(job, base)
    return untrained(job, base, network, "a linear probe on the base")


def climb_rows(job: Job, base: Model) -> Network:
    """Both on one vector for each row; the base with the probe as its head."""
    started, task, seed = time.monotonic(), job.task, job.settings.seed
    machine, most = job.machine, job.most_features
    some = job.features or some_features(base, job.train, task, machine, seed, most)
    known, targets = some.values, np.asarray(job.train.targets)[some.rows]
    asked = features_of(base, job.val, task, machine)
    votes = task.votes(known, targets, asked)
    if votes is not None:
        job.rungs.append(score_rung(job, "knn", votes, started, "a yardstick: it keeps all rows"))
    started = time.monotonic()
    weight, bias = probes.linear(known, targets, task.probe, seed)
    said = task.of_outputs(asked @ weight.T + bias)
    job.rungs.append(score_rung(job, "probe", said, started))
    return with_head(base.network, task, *task.before_units(weight, bias))


def climb_words(job: Job, base: Model) -> Network:
    """The probe on the vector of each word's first token; the base with it as its head."""
    started, task, seed = time.monotonic(), job.task, job.settings.seed
    vectors, tags = word_features(base, job.train, task, job.machine, seed, job.most_features)
    seen, codes = np.unique(tags, return_inverse=True)
    weight = np.zeros((task.n_outputs, vectors.shape[1]), np.float32)
    bias = np.full(task.n_outputs, UNSEEN, np.float32)
    if len(seen) > 1:
        weight[seen], bias[seen] = probes.linear(vectors, codes, task.probe, seed)
    network = with_head(base.network, task, weight, bias)
    said = predict_rows(network, Feed(task, job.val, base.processors), job.machine)
    job.rungs.append(score_rung(job, "probe", said, started))
    return network


def untrained_base(job: Job, base: Model) -> Contender:
    """The base's own vectors, nothing trained."""
    started, network = time.monotonic(), copy.deepcopy(base.network)
    reset_head(network, job.task)
    said = predict_rows(network, Feed(job.task, job.val, base.processors), job.machine)
    job.rungs.append(score_rung(job, "base", said, started, "nothing trained"))
    return untrained(job, base, network, "the base as it is")


def untrained(job: Job, base: Model, network: Network, why: str) -> Contender:
    """A contender of the last rung."""
    choice = Choice(base.variant, base.family, network.config, base.processors, why)
    beginning = kinds.of(job.train).start("full", job.train, choice)
    recipe = recipe_for(beginning, len(job.train), job.settings)
    return Contender(job.rungs[-1].name, network, choice, recipe, rung=job.rungs[-1])


def with_head(network: Network, task: Task, weight: np.ndarray, bias: np.ndarray) -> Network:
    """A copy of the network with this linear head on its features."""
    network = copy.deepcopy(network)
    reset_head(network, task, pooled=True)
    head = network.head
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight).reshape(head.weight.shape))
        head.bias.copy_(torch.from_numpy(bias))
    return network


def reset_head(network: Network, task: Task, pooled: bool = False) -> None:
    """A fresh head for this task; one for masked words stays, as it is the same for any text.

    pooled: of a text encoder one on the vectors that `features_of` gives.
    """
    kind = task.head_kind
    if kind == head_kind(network) == "masked":
        return
    if pooled and kind == "class" and "pooled" in network.HEADS:
        kind = "pooled"
    network.reset_head(task.n_outputs, kind)


# ---- training rungs --------------------------------------------------------------------------


def new_contender(
    job: Job, way: str, base: Model | None, scratch: Fresh, probe: Contender | None = None
) -> Contender:
    """A contender before its first step, planned.

    A base of sentence vectors goes on from its probe where there is one: the vector that the probe
    reads is what the base was trained for, its first token is not.
    """
    s, forecast = job.settings, None
    if way == "scratch":
        choice, forecast = scratch()
        network = fresh(lambda: models.build(choice.family, choice.config), s.seed)
    else:
        assert base is not None
        alone = s.quantize != "none"  # nothing else needs the base then: it is packed in place
        network = base.network if alone else copy.deepcopy(base.network)
        known = base.task is not None and type(base.task) is type(job.task) and not job.task.labels
        if probe is not None and head_kind(base.network) == "embed":
            network = copy.deepcopy(probe.network)
        elif not known:
            with runtime.seeded(s.seed, 0x4EAD):
                reset_head(network, job.task)
        if way == "lora":
            adapt_base(network, s, fresh_head=not known)
        config = network.config
        choice = Choice(base.variant, base.family, config, base.processors, f"{way} on base")
    prepare_network(network, choice, job)
    kind = kinds.of(job.train)
    augment = kind.augmentation(choice.processors[kind.name], s, job.studied.get(kind.name))
    width = vars(choice.config).get("dim", 0)
    beginning = kind.start(way, job.train, choice)
    recipe = recipe_for(beginning, len(job.train), s, augment, width)
    recipe = replace(recipe, **choice.fitted)
    contender = Contender(way, network.to(job.machine.device), choice, recipe, forecast)
    put_on_lens(job, choice.processors)
    contender.plan = plan_contender(job, contender)
    job.on_plan(contender.plan, way)
    return contender


def adapt_base(network: Network, s: Settings, fresh_head: bool) -> None:
    """LoRA as the settings say, on a base in few bits where they ask for it."""
    if s.quantize != "none":
        quantize(network, int(s.quantize))
    options = s.lora_rank, s.lora_alpha, s.lora_variant, s.lora_dropout, s.lora_targets
    lora.add_lora(network, *options, train_head=fresh_head, seed=s.seed)


def prepare_network(network: Network, choice: Choice, job: Job) -> None:
    """What some families compute from the training rows before the first step."""
    prepare = vars(models.family(choice.family)).get("prepare")
    if prepare is not None:
        rows = job.train.subset(np.arange(min(PREPARED, len(job.train))))
        prepare(network, batch_of(job.task, rows, choice.processors).main(network.READS))


def plan_contender(job: Job, contender: Contender) -> Plan:
    """What the training takes; of rows that differ in length, time by usual ones and memory by the
    longest."""
    r, processors, network = contender.recipe, contender.choice.processors, contender.network

    def planned(rows: Examples, measure: bool) -> Plan:
        batch = batch_of(job.task, rows, processors)
        row = sum(t.nbytes for t in batch.tensors.values()) // len(batch)
        n = r.global_batch_size
        parts = parts_of(job.task, batch, n, r.grad_accum_steps, job.machine.device)
        setting = {
            "device_batch_size": -(-n // parts), "grad_accum_steps": parts, "steps": r.steps,
            "optimizer": r.optimizer, "dtype": job.machine.dtype, "ema": bool(r.ema),
            "checkpointing": r.checkpointing,
        }  # fmt: skip
        extra = AHEAD * n * row
        return make_plan(network, batch, job.task, measure=measure, extra=extra, **setting)

    some = job.train.subset(np.linspace(0, len(job.train) - 1, SAMPLED).astype(int))
    measured = [(k, k.lengths(some, processors[k.name])) for k in kinds.several(job.train)]
    kind, lengths = next(((k, n) for k, n in measured if n is not None), (None, None))
    if kind is None or lengths is None:
        plan = planned(some.subset(np.arange(2)), measure=True)
        return replace(plan, forecast=contender.forecast)
    usual = np.argsort(np.abs(lengths - lengths.mean()), kind="stable")[:2]
    largest = planned(some.subset(np.argsort(-lengths, kind="stable")[:2]), measure=False)
    memory, plan = dict(largest.memory), planned(some.subset(usual), measure=True)
    if job.machine.device == "cpu":
        n = r.global_batch_size
        shapes = {kind.longest_padded(t, processors[kind.name], n) for t in lengths.tolist()}
        more = lengths_in_turn(largest.trace, len(shapes))
        memory["peak"] = memory["peak"].plus(more)
        request = replace(largest.request, extra=largest.request.extra + int(more.value))
        largest = replace(largest, request=request)
    return replace(plan, memory=memory, request=largest.request)
