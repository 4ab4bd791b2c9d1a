"""How large a decoder and how long, for the time at hand: a law fitted on this very corpus.

A few small decoders are trained for a small share of the time. Each gives several points of the law
for little more than the price of one: the rate stays constant, and where a point is wanted a copy
decays by itself (Hägele et al., arXiv:2405.18392), which is to the bit what a run of that
length would have been. The proxies' own pace says what each size costs here per token.

Legend: n windows, T tokens of a window, N parameters that multiply, D tokens trained on, V
vocabulary.
"""

import copy
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from layerwise import kinds, models
from layerwise.adapt.groups import parameter_groups
from layerwise.console import duration
from layerwise.data.loader import Batches
from layerwise.fitting.job import Job, some_rows
from layerwise.fitting.recipes import recipe_for
from layerwise.kinds.contract import Choice
from layerwise.kinds.text.language import WIDTHS, corpus_of, decoder_of, name_of, unigram_bits
from layerwise.kinds.text.processor import TextProcessor
from layerwise.models.llama import Config
from layerwise.models.network import Network
from layerwise.planning import scaling
from layerwise.planning.scaling import FLOPS, LEAST_RUNS, Forecast, Point
from layerwise.runtime import Runtime
from layerwise.storage import read_json, write_json
from layerwise.tasks.feed import Feed
from layerwise.train.checkpoint import State
from layerwise.train.loop import Hooks, LoopConfig, train
from layerwise.train.optim import build_optimizer
from layerwise.train.predicting import predict_rows
from layerwise.train.run import Recipe, fresh

EFFICIENCY = 0.3  # of the rate of large products that small networks reach, validation included
SHARE, LEAST_SECONDS = 0.08, 6.0  # of the time: what the proxies take together
SHORT_SHARE, SHORT_SECONDS = (
    0.15,
    48.0,
)  # a larger share of a short time, which forecasts little otherwise
SIZES = (0.15, 0.35, 0.8)  # of the size that the paper's constants would choose
FEW_SECONDS, FEW_SIZES = 30.0, (0.35, 0.8)  # where the time is too short for three
AMOUNTS = (0.3, 0.55, 1.0)  # of the tokens that a proxy can read in its time
PLATEAU = 0.93  # of the loss by frequencies alone: above it no law of sizes holds yet
STABLE = 0.8  # of a run before its decay: `schedule.lr_factor`, "wsd"
OVERHEAD = 1.6  # of the steps alone: the decays that are gone twice, and the validations
LEAST_STEPS, TRIED_STEPS = 20, 3
HOFFMANN = (406.4, 410.7, 0.34, 0.28)  # A, B, alpha, beta: arXiv:2203.15556, table A3
MOST_EPOCHS = 1 + scaling.REPEATS_WORTH
PARAMS_PER_TOKEN = 8  # of the corpus; larger networks memorise it before their training ends
LEAST_HELD = 32  # windows that validate a small run
STEADY = 0.9  # of the time goes into steps, the rest into validation


def choose_by_law(
    job: Job, reader: TextProcessor, seconds: float
) -> tuple[Choice, Forecast | None]:
    """The decoder of the lowest expected loss for `seconds` of training, the proxies included, and
    the forecast of its loss.

    What was measured is kept in the run's folder: a resumed run measures nothing anew. Where the
    time is too short for a law, the size follows the paper's constants, without a forecast.
    """
    outlook, s, T = outlook_of(job, reader, seconds), job.settings, reader.max_seq_len
    flops, unique = read_json(kept_in(job))["flops"], len(corpus_of(job.train).tokens)
    if outlook is None:
        width = proxy_widths(flops, reader, (1.0,))[0]
        why = "by Hoffmann's constants: the time is too short for small runs to forecast more"
        job.console.say(f"no forecast; the size is chosen {why}")
    else:
        width = int(outlook.best.name.split("x")[0])
        why = f"lowest expected loss by {len(outlook.runs)} small runs on this corpus"
    config = decoder_of(width, reader.tokenizer.vocab_size, T)
    n = multiplied(config)
    tokens = outlook.best.tokens if outlook else min(flops / (FLOPS * n), MOST_EPOCHS * unique)
    rows = (s.device_batch_size or batch_rows(n, tokens, T)) * s.grad_accum_steps
    fitted, most = {"global_batch_size": min(rows, len(job.train))}, 0
    if not (s.steps or s.epochs):
        step = fitted["global_batch_size"] * T
        fitted["steps"] = max(LEAST_STEPS, round(tokens / step))
        fitted["warmup_steps"] = fitted["steps"] // 20
        most = max(LEAST_STEPS, round(MOST_EPOCHS * unique / step))
    processors = {"text": reader}
    return Choice(name_of(config), "llama", config, processors, why, fitted, most), outlook


def kept_in(job: Job) -> pathlib.Path:
    return job.folder / "proxies.json"


def outlook_of(job: Job, reader: TextProcessor, seconds: float) -> Forecast | None:
    """The forecast for every size, from proxies run now or kept in the folder.

    None where too few of them got past the frequencies of tokens.
    """
    kept = kept_in(job)
    if not kept.exists():
        flops = affordable_flops(seconds, job.machine)
        own = seconds_of(seconds)
        widths = proxy_widths(flops, reader, FEW_SIZES if own < FEW_SECONDS else SIZES)
        write_json(kept, {"seconds": seconds, "flops": flops, "widths": widths, "runs": []})
        job.console.say(f"proxies: small decoders on this corpus for about {duration(own)}")
    found = read_json(kept)
    own, flops = seconds_of(found["seconds"]), found["flops"]
    for width in found["widths"]:
        if width not in [run["width"] for run in found["runs"]]:
            part = own / len(found["widths"])
            share = part / found["seconds"]
            found["runs"] += run_proxy(job, reader, width, part, share * flops)
            write_json(kept, found)
    runs, unique = found["runs"], len(corpus_of(job.train).tokens)
    flat = PLATEAU * unigram_bits(job.train, job.val)
    points = [Point(r["params"], r["tokens"], r["loss"]) for r in runs if r["loss"] < flat]
    if len(points) < LEAST_RUNS or len({p.params for p in points}) < 2:
        return None
    law = scaling.fit_law(points, unique, job.settings.seed)
    sampled = float(np.sqrt(np.mean([run["sampling"] ** 2 for run in runs])))
    law = replace(law, noise=math.hypot(law.noise, sampled))
    left = STEADY * (found["seconds"] - own)
    sizes = candidates(reader, pace_of(runs), left, unique)
    return scaling.forecast(law, points, sizes, job.task.score)


def seconds_of(seconds: float) -> float:
    """What the proxies take of a budget. Twice a share of 0.08 halves the error: docs/log.md."""
    return max(LEAST_SECONDS, SHARE * seconds, min(SHORT_SHARE * seconds, SHORT_SECONDS))


def candidates(
    reader: TextProcessor, pace: Callable[[float], float], seconds: float, unique: float
) -> list[tuple[str, float, float]]:
    """(name, N, D) of every decoder that is no larger than the text allows."""
    out = []
    for width in WIDTHS:
        config = decoder_of(width, reader.tokenizer.vocab_size, reader.max_seq_len)
        n = multiplied(config)
        tokens = min(seconds / pace(n), MOST_EPOCHS * unique)
        few = tokens < LEAST_STEPS * reader.max_seq_len
        if out and (few or n > PARAMS_PER_TOKEN * unique):
            break
        out.append((f"{config.dim}x{config.n_layers}", float(n), tokens))
    return out


def multiplied(config: Config) -> int:
    """N: the parameters of every matrix, the head's among them."""
    within = config.n_layers * (4 * config.dim**2 + 3 * config.dim * config.mlp_dim)
    return within + config.vocab_size * config.dim


def proxy_widths(flops: float, reader: TextProcessor, shares: Sequence[float]) -> list[int]:
    """Widths whose N come nearest to these shares of what the paper's constants would choose."""
    a, b, alpha, beta = HOFFMANN
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    best = ratio * (flops / FLOPS) ** (beta / (alpha + beta))
    V, T = reader.tokenizer.vocab_size, reader.max_seq_len
    sizes = np.log([multiplied(decoder_of(w, V, T)) for w in WIDTHS])
    places = [int(np.argmin(abs(sizes - math.log(share * best)))) for share in shares]
    for i in range(1, len(places)):  # different ones, also where the smallest are wanted
        places[i] = max(places[i], places[i - 1] + 1)
    return [WIDTHS[i] for i in places]


def batch_rows(params: float, tokens: float, length: int) -> int:
    """Windows of a step: a quarter of the 0.292 C^0.327 tokens of large runs (DeepSeek LLM,
    arXiv:2401.02954, section 3.1), since short runs lack steps rather than tokens: docs/log.md."""
    wanted = 0.292 / 4 * (FLOPS * params * tokens) ** 0.3271 / length
    return int(np.clip(2 ** round(math.log2(max(wanted, 1))), 4, 512))


def pace_of(runs: list[dict[str, Any]]) -> Callable[[float], float]:
    """Seconds per token as a + b N, fitted to the proxies with relative errors."""
    from scipy.optimize import nnls

    n = np.array([run["params"] for run in runs])
    seconds = np.array([run["pace"] for run in runs])
    (a, b), _ = nnls(np.stack([1 / seconds, n / seconds], 1), np.ones(len(n)))
    return lambda params: a + b * params


# ---- one size --------------------------------------------------------------------------------


def run_proxy(
    job: Job, reader: TextProcessor, width: int, seconds: float, flops: float
) -> list[dict[str, Any]]:
    """Train one size for about `seconds`; what it came to after each of AMOUNTS."""
    config = decoder_of(width, reader.tokenizer.vocab_size, reader.max_seq_len)
    n, T, s = multiplied(config), reader.max_seq_len, job.settings
    rows = min(batch_rows(n, flops / (FLOPS * n), T), len(job.train))
    choice = Choice("", "llama", config, {"text": reader}, "")
    recipe = recipe_for(kinds.of(job.train).start("scratch", job.train, choice), len(job.train), s)
    batches = Batches(Feed(job.task, job.train, choice.processors), rows, s.seed)
    proxy = Proxy(job, config, recipe, batches)
    steps = max(LEAST_STEPS, round(seconds / proxy.try_step() / OVERHEAD))
    warmup, out = max(1, steps // 20), []
    some = some_rows(job.val, max(LEAST_HELD, steps * rows // 4))
    held = Feed(job.task, some, choice.processors)
    for amount in AMOUNTS:
        end = max(8, round(amount * steps))
        proxy.advance(LoopConfig(round(STABLE * end), recipe.lr, "constant", warmup))
        said = proxy.decayed(LoopConfig(end, recipe.lr, "wsd", warmup), held)
        loss = float(job.task.metric(*job.task.scored(said, held.examples)))
        done = f"{end} of {steps} steps: {loss:.3f}"
        job.console.progress(f"  proxy of {config.dim}, {done}", every=0)
        out.append({"width": width, "params": n, "tokens": end * rows * T, "loss": loss,
                    "sampling": sampling_error(said, len(job.val))})  # fmt: skip
    pace = proxy.seconds / (proxy.state.step * rows * T)
    return [run | {"pace": pace} for run in out]


class Proxy:
    """A small decoder in training, and copies of it that decay."""

    def __init__(self, job: Job, config: object, recipe: Recipe, batches: Batches):
        self.job, self.recipe, self.batches = job, recipe, batches
        self.network = fresh(lambda: models.build("llama", config), recipe.seed)
        self.network = self.network.to(job.machine.device)
        self.optimizer = self.optimizer_of(self.network)
        self.state, self.seconds = State(seed=recipe.seed), 0.0

    def optimizer_of(self, network: Network) -> Optimizer:
        r = self.recipe
        return build_optimizer(r.optimizer, parameter_groups(network, r.weight_decay), r.lr)

    def branch(self) -> tuple[Network, Optimizer, State]:
        network = copy.deepcopy(self.network)
        optimizer = self.optimizer_of(network)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return network, optimizer, State(step=self.state.step, seed=self.state.seed)

    def train(
        self, network: Network, optimizer: Optimizer, config: LoopConfig, state: State
    ) -> State:
        task, machine = self.job.task, self.job.machine
        state = train(network, task, self.batches, optimizer, config, state, machine, Hooks())
        if state.step < config.steps:
            raise KeyboardInterrupt
        return state

    def try_step(self) -> float:
        """Seconds of a step, on a copy."""
        network, optimizer, state = self.branch()
        times = []
        for step in range(1, TRIED_STEPS + 1):
            started = time.perf_counter()
            config = LoopConfig(step, self.recipe.lr, "constant")
            state = self.train(network, optimizer, config, state)
            times.append(time.perf_counter() - started)
        return min(times)

    def advance(self, config: LoopConfig) -> None:
        started = time.perf_counter()
        self.state = self.train(self.network, self.optimizer, config, self.state)
        self.seconds += time.perf_counter() - started

    def decayed(self, config: LoopConfig, held: Feed) -> list[Any]:
        """Predictions of `held` by a copy that has gone its decay."""
        network, optimizer, state = self.branch()
        self.train(network, optimizer, config, state)
        return predict_rows(network, held, self.job.machine)


def sampling_error(predictions: Sequence[Any], n_all: int) -> float:
    """By how much the mean of these windows may miss that of all, relative."""
    each = np.array([p.loss / max(p.tokens, 1) for p in predictions], np.float32)
    missing = max(0.0, 1 - len(each) / n_all)
    return float(each.std() / max(each.mean(), 1e-9) * math.sqrt(missing / len(each)))


def affordable_flops(seconds: float, machine: Runtime) -> float:
    """FLOPs that a training budget pays for here, about, at the rate of large matrix products."""
    return EFFICIENCY * seconds * product_rate(machine)


def product_rate(machine: Runtime, side: int = 768) -> float:
    """FLOP/s of a matrix product of side x side in the arithmetic of this run, the best of five."""
    a, b = (torch.randn(side, side, dtype=machine.dtype, device=machine.device) for _ in "ab")
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
