"""Gradients of one step in pairs of ways that are the same mathematics, and whether they agree.

A big batch or several small ones, packed rows or padded ones, activations kept or computed again,
layers compiled or not, one rank or two: each changes the order of sums, none may change their
value. Every pair is computed in float64, where rounding is so small that a difference is one of the
computation, and in the arithmetic of training, where it may be no more than what rounding makes of
it: measured by giving the same rows in other orders, and against float64.

Dropout is off. Layers that normalise by statistics of the batch use their running ones here; how
far their micro-batches differ in training is measured separately.

Legend: B rows, T positions, L layers.
"""

import copy
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from layerwise import runtime
from layerwise.adapt.freeze import parameters_by_layer
from layerwise.data.examples import Batch
from layerwise.kinds.text.corpus import NO_LOSS
from layerwise.models.network import Network
from layerwise.planning.step import accumulate, checkpoint_layers
from layerwise.runtime import Runtime
from layerwise.tasks.task import Task

PARTS = 3  # micro-batches, the last one smaller
ORDERS = 3  # of rows that are tried, to measure rounding
ROOM = 10.0  # times the rounding seen: beyond, it is something else
LEAST = 1.2e-7  # rounding of fp32
EXACT = 1e-5  # beyond is not rounding; a few sums are taken in fp32 even in float64
LOSS = "loss"
Gradients = dict[str, Tensor]  # by layer, one after the other in a vector; and the mean loss


@dataclass
class Pair:
    """Two ways compared. verdict: "same", "differs", "by nature" (it does, and must) or "skipped".

    Differences are relative to the length of the layer's gradient.
    """

    name: str
    verdict: str
    why: str = ""
    layer: str = ""  # the one with the largest difference, in the arithmetic of training
    difference: float = 0.0  # of that layer
    explained: float = 0.0  # how much of a difference rounding explains there
    exact: float = 0.0  # the largest difference of all layers in float64
    layers: dict[str, float] = field(default_factory=dict)


class Trial:
    """One network, batch and arithmetic; gives the gradients of a step in any way.

    `base`: those of the whole batch at once. `explained`: by layer, how much rounding may change.
    """

    def __init__(
        self, network: Network, task: Task, batch: Batch, machine: Runtime, exact: bool = False
    ):
        dtype = torch.float64 if exact else torch.float32
        self.network = copy.deepcopy(network).to(machine.device, dtype).requires_grad_().eval()
        self.task, self.exact = task, exact
        self.machine = Runtime(machine.device, torch.float32 if exact else machine.dtype, 0)
        self.batch = self.cast(batch)
        self.count = task.count(self.batch)
        self.base = self.gradients([self.batch])
        self.explained = dict.fromkeys(self.base, EXACT)

    def cast(self, batch: Batch) -> Batch:
        """The batch as this arithmetic takes it, on the trial's device."""
        dtype = torch.float64 if self.exact else torch.float32
        cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
        tensors = {name: cast(t) for name, t in batch.tensors.items()}
        return Batch(tensors, batch.rows).to(self.machine.device)

    def gradients(self, micros: Sequence[Batch]) -> Gradients:
        """Of the mean loss over the whole step, which has `count` terms."""
        self.network.zero_grad(set_to_none=True)
        total = accumulate(self.network, self.task, micros, self.count, self.machine.autocast)
        return by_layer(self.network) | {LOSS: total[None].double() / self.count}

    def measure_rounding(self, truth: "Trial") -> None:
        """By rows in other orders and by the distance to float64; layers share their mean."""
        others = [self.gradients([shuffled(self.batch, i)]) for i in range(ORDERS)]
        off = [differences(grads, self.base) for grads in others]
        off.append(differences(self.base, truth.base))
        seen = {name: max(LEAST, *(d[name] for d in off)) for name in self.base}
        mean = sum(seen.values()) / len(seen)
        self.explained = {name: ROOM * max(value, mean) for name, value in seen.items()}


def by_layer(network: Network) -> Gradients:
    """The gradient of each layer's parameters in one vector; zeros where there is none."""
    out = {}
    for name, parameters in parameters_by_layer(network).items():
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        if grads:
            out[name] = torch.cat([g.flatten() for g in grads])
    return out


def differences(a: Gradients, b: Gradients) -> dict[str, float]:
    """The length of a - b over that of b, by layer; infinite where only b is nothing."""
    out = {}
    for name, want in b.items():
        got, want = a[name].cpu().double(), want.cpu().double()
        off, size = float((got - want).norm()), float(want.norm())
        out[name] = off / size if size else (float("inf") if off else 0.0)
    return {name: d if d == d else float("inf") for name, d in out.items()}


def shuffled(batch: Batch, seed: int) -> Batch:
    """The same rows in another order."""
    order = torch.randperm(len(batch), generator=runtime.generator(seed))
    tensors = {name: t[order.to(t.device)] for name, t in batch.tensors.items()}
    return Batch(tensors, batch.rows[order.numpy()])


# ---- the ways ----------------------------------------------------------------------------------
def reordered(trial: Trial) -> tuple[Gradients, Gradients]:
    return trial.gradients([shuffled(trial.batch, ORDERS)]), trial.base


def in_parts(trial: Trial) -> tuple[Gradients, Gradients]:
    return trial.gradients(trial.batch.split(PARTS, trial.task.joint)), trial.base


def recomputed(trial: Trial) -> tuple[Gradients, Gradients]:
    layers = trial.network.layers()
    try:
        checkpoint_layers(layers)
        return trial.gradients([trial.batch]), trial.base
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)


def compiled(trial: Trial) -> tuple[Gradients, Gradients]:
    layers = trial.network.layers()
    try:
        for layer in layers.values():
            layer.compile()
        return trial.gradients([trial.batch]), trial.base
    finally:
        for layer in layers.values():
            layer._compiled_call_impl = None


def packed(trial: Trial) -> tuple[Gradients, Gradients]:
    together, apart = packed_and_padded(trial.batch)
    whole, trial.count = trial.count, trial.task.count(together)
    try:
        return trial.gradients([together]), trial.gradients([apart])
    finally:
        trial.count = whole


def packed_and_padded(batch: Batch) -> tuple[Batch, Batch]:
    """The same documents several to a row, (B, T), and each in a row of its own with padding.

    Every row is cut into two documents at a third of it, besides where it has several already.
    """
    whole, targets = batch["tokens"], batch["targets"].clone()
    B, T = whole.shape
    cut = torch.arange(T, device=whole.device) >= T // 3
    documents = 2 * batch.tensors.get("documents", torch.zeros_like(whole)) + cut
    targets[:, T // 3 - 1] = NO_LOSS  # what follows is of another document now
    together = Batch({"tokens": whole, "targets": targets, "documents": documents}, batch.rows)
    found = [(b, documents[b] == d) for b in range(B) for d in documents[b].unique()]
    own = [(b, where) for b, where in found if bool((targets[b, where] != NO_LOSS).any())]
    longest = max(int(where.sum()) for _, where in own)
    tokens = whole.new_zeros(len(own), longest)
    asked = targets.new_full((len(own), longest), NO_LOSS)
    mask = torch.zeros(len(own), 1, 1, longest, dtype=torch.bool, device=whole.device)
    for i, (b, where) in enumerate(own):
        n = int(where.sum())
        tokens[i, :n], asked[i, :n], mask[i, ..., :n] = whole[b, where], targets[b, where], True
    rows = batch.rows[[b for b, _ in own]]
    return together, Batch({"tokens": tokens, "targets": asked, "mask": mask}, rows)


Shares = Sequence[Sequence[Batch]]  # of each rank


def on_two_ranks(trial: Trial) -> tuple[Gradients, Gradients]:
    """Each of two processes has its share of the rows; loss and gradients are summed over both."""
    first, *rest = (micro.to("cpu") for micro in trial.batch.split(PARTS))
    machine = Runtime("cpu", trial.machine.dtype, 1)
    network = copy.deepcopy(trial.network).cpu()
    network.zero_grad(set_to_none=True)
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, network, trial.task, ([first], rest), machine)
        torch.multiprocessing.spawn(one_rank, given, nprocs=2)  # type: ignore[attr-defined]
        return load_file(pathlib.Path(folder) / "sums.safetensors"), trial.base


def one_rank(
    rank: int, folder: str, network: Network, task: Task, shares: Shares, machine: Runtime
) -> None:
    """What each process does; the first writes the sums."""
    from torch import distributed

    runtime.start("cpu", threads=1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    count = torch.tensor(float(sum(task.count(micro) for micro in shares[rank])))
    distributed.all_reduce(count)
    total = accumulate(network, task, shares[rank], float(count), machine.autocast)
    sums = by_layer(network) | {LOSS: total[None].double() / count}
    for name in sorted(sums):
        distributed.all_reduce(sums[name])
    if rank == 0:
        save_file(sums, pathlib.Path(folder) / "sums.safetensors")
    distributed.destroy_process_group()


# ---- all of them -------------------------------------------------------------------------------
Way = Callable[[Trial], tuple[Gradients, Gradients]]
Alone = Sequence[Batch]
Skip = Mapping[str, str]
NONE: Skip = {}


def compare(
    network: Network,
    task: Task,
    batch: Batch,
    machine: Runtime,
    alone: Alone = (),
    skip: Skip = NONE,
) -> list[Pair]:
    """Every pair of ways on this network (left as it is) and batch.

    alone: the rows of the batch, each as a batch without padding. skip: reasons to leave a pair
    out, by the name of the pair.
    """
    device = machine if machine.device != "mps" else Runtime("cpu", machine.dtype, 0)
    truth, own = (Trial(network, task, batch, device, exact) for exact in (True, False))
    own.measure_rounding(truth)

    def unpadded(trial: Trial) -> tuple[Gradients, Gradients]:
        return trial.gradients([trial.cast(row) for row in alone]), trial.base

    ways: dict[str, Way] = {
        "rows in another order": reordered,
        "accumulated or one batch": in_parts,
        "packed or padded": unpadded if alone else packed,
        "recomputed or kept": recomputed,
        "compiled or eager": compiled,
        "two ranks or one": on_two_ranks,
    }
    reasons = {**reasons_to_skip(batch, bool(alone)), **skip}
    pairs = [
        Pair(name, "skipped", reasons[name]) if name in reasons else judge(name, way, truth, own)
        for name, way in ways.items()
    ]
    nature = batch_statistics(network, task, batch, device)
    return pairs + ([nature] if nature else [])


def reasons_to_skip(batch: Batch, alone: bool) -> dict[str, str]:
    out: dict[str, str] = {}
    if not torch.distributed.is_available():
        out["two ranks or one"] = "this PyTorch is built without torch.distributed"
    tokens, device = batch.tensors.get("tokens"), next(iter(batch.tensors.values())).device
    if not alone and (tokens is None or tokens.ndim != 2):
        out["packed or padded"] = "only texts are packed"
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        out["compiled or eager"] = "it needs a C++ compiler, and there is none"
    return out


def judge(name: str, way: Way, truth: Trial, own: Trial) -> Pair:
    """One pair in both arithmetics, layer by layer."""
    exact, found = (differences(*way(trial)) for trial in (truth, own))
    worst = max(found, key=lambda layer: found[layer] / own.explained[layer])
    seen = found[worst], own.explained[worst], max(exact.values()), found
    pair = Pair(name, "same", "", worst, *seen)
    for trial, seen, arithmetic in ((truth, exact, "float64"), (own, found, "training")):
        beyond = [layer for layer in seen if not seen[layer] <= trial.explained[layer]]
        if beyond:
            first = beyond[0]
            pair.verdict = "differs"
            by, most = f"{seen[first]:.1e}", f"{trial.explained[first]:.1e}"
            where = f"the arithmetic of {arithmetic}, where rounding explains {most}"
            pair.why = f"first in {first}, by {by} in {where}"
            break
    return pair


def batch_statistics(network: Network, task: Task, batch: Batch, machine: Runtime) -> Pair | None:
    """What layers that normalise by the statistics of a batch make of smaller ones, in training."""
    normalising = [n for n, m in network.named_modules() if isinstance(m, _BatchNorm)]
    if not normalising:
        return None
    trial = Trial(network, task, batch, machine, exact=True)
    for module in trial.network.modules():
        module.train(isinstance(module, _BatchNorm))
    found = differences(trial.gradients(trial.batch.split(PARTS)), trial.gradients([trial.batch]))
    worst = max(found, key=lambda layer: found[layer])
    why = (
        f"because batch statistics are per micro-batch (and rank) in {len(normalising)} layers, "
        f"{normalising[0]} the first; above, statistics are fixed"
    )
    return Pair("batch statistics", "by nature", why, worst, found[worst], 0.0, found[worst], found)
