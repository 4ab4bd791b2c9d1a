"""What travels together: the network, the processors that turned raw input into its tensors, the
task with its labels in their order, the calibration, and the card.
"""

import contextlib
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.fx.proxy import TraceError

from layerwise import kinds, models, runtime
from layerwise.adapt.fuse import fused
from layerwise.data.examples import Examples
from layerwise.data.text_files import sniff
from layerwise.errors import WeightsError
from layerwise.generation import greedy
from layerwise.kinds.contract import Ends, Kind
from layerwise.kinds.opening import open_data
from layerwise.kinds.text.documents import lines_of
from layerwise.models.network import Network
from layerwise.settings import Settings
from layerwise.tasks.feed import Feed
from layerwise.tasks.scores.calibration import conformal_quantile
from layerwise.tasks.task import Calibration, Task
from layerwise.train.predicting import predict_rows

Data = str | pathlib.Path | Examples | Sequence[Any]  # where rows lie, they themselves, values
WORTH_FUSING = 256  # rows from which preparing the fused network pays
CERTIFIED = 8  # rows on which it must say the same first


@dataclass
class Model:
    """A network and everything it needs to be used; its verbs are the command line's.

    processors: by the kind that they read. task: None for a network that is only a base.
    """

    network: Network
    family: str
    processors: dict[str, Any]
    task: Task | None
    variant: str = ""
    calibration: Calibration = field(default_factory=Calibration)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        return () if self.task is None else self.task.labels

    @property
    def kind(self) -> Kind:
        """The kind of its first field."""
        return kinds.kind(next(iter(self.processors)))

    @property
    def processor(self) -> Any:
        """That of its kind."""
        return self.processors[self.kind.name]

    @property
    def tokenizer(self) -> Any:
        return self.processors["text"].tokenizer

    # ---- use -----------------------------------------------------------------------------------

    def machine(self, threads: int = 0) -> runtime.Runtime:
        """What it computes with: the arithmetic of its run, so that its scores come again."""
        return runtime.start(dtype=self.card.get("dtype", "auto"), threads=threads)

    def answers(self) -> Task:
        """Its task. Errors: WeightsError for a network without one."""
        if self.task is None:
            raise WeightsError(f"{self.variant} has no task yet: `layerwise fit` it with --base")
        return self.task

    def predictions(
        self, rows: Examples, machine: runtime.Runtime | None = None, batch_size: int = 0
    ) -> Sequence[Any]:
        """What it says of each row, as predictions of its task, calibrated.

        Errors: WeightsError for rows of another kind, and for a model that gives no answers.
        """
        task = self.answers()
        if not set(rows.kinds.values()) <= self.processors.keys():
            reads, holds = map(kinds.in_words, (self.processors, rows.kinds.values()))
            what = rows.source or "the data"
            raise WeightsError(f"this model reads {reads}, but {what} holds {holds}")
        machine = machine or self.machine()
        network, feed = self.network.to(machine.device), Feed(task, rows, self.processors)
        if machine.device == "cpu" and len(rows) >= WORTH_FUSING:
            network = self.fast(feed, machine, batch_size)
        found = predict_rows(network, feed, machine, batch_size)
        return task.calibrated(found, self.calibration.temperature)

    def fast(self, feed: Feed, machine: runtime.Runtime, batch_size: int) -> Network:
        """The network fused for inference, once it has been seen to say the same on these rows.

        The network itself where its rows are not maps alone, where its forward pass cannot be
        followed, or where both differ by more than rounding explains, relative to the largest
        output.
        """
        given = feed.look(np.arange(min(CERTIFIED, feed.n))).select(self.network.READS)
        x = next(iter(given.values()))
        if len(given) > 1 or not x.is_floating_point() or x.ndim < 3:
            return self.network
        machine = replace(machine, dtype=runtime.kernel_dtype(machine.dtype))
        size = min(batch_size or len(feed.parts()[0]), feed.n)
        with contextlib.suppress(TraceError, RuntimeError, TypeError):
            quick = fused(self.network, x[:1].expand(size, *x.shape[1:]), machine.dtype)
            with runtime.evaluating(self.network):
                with machine.autocast():
                    want = self.network(x).float()
                error = (quick(x) - want).abs().max() / want.abs().max().clamp_min(1e-9)
            if float(error) < (1e-4 if machine.dtype == torch.float32 else 0.05):
                return quick
        return self.network

    def predict(
        self, data: Data, confidence: float = 0.0, top: int = 3, threads: int = 0
    ) -> list[Any]:
        """A prediction for each row of `data` (a path, values in hand, or what `open_data` gave).

        confidence: with e.g. 0.9 each prediction carries a conformal set (or interval) that holds
        the truth with that probability, and `unsure` where it is not one label.
        Returns the typed predictions of its task; `row()` is one as JSON.
        """
        task = self.answers()
        if not task.answers:
            cure = "`layerwise generate` from a prompt, or `layerwise fit` it with --base"
            raise WeightsError(f"{self.variant} gives no answer for a row: {cure}")
        rows = self.rows(data)
        found = self.predictions(rows, self.machine(threads))
        level = self.conformal_level(confidence) if confidence else None
        each = zip(found, rows.names, rows.rows(), strict=True)
        return [p.of_row(str(name), row, top, level) for p, name, row in each]

    def rows(self, data: Data) -> Examples:
        """Rows to predict: of a path, of values in hand, or as they are.

        The lines of a text file are rows of their own for a model that learned from rows.
        """
        if isinstance(data, Examples):
            return data
        if not isinstance(data, str | pathlib.Path):
            return self.of_values([data] if isinstance(data, bytes) else data)
        kind = self.kind.name if self.kind.insists else None
        rows = open_data(data, target=self.card.get("target"), kind=kind, learn=False)
        document = pathlib.Path(data).is_file() and sniff(pathlib.Path(data)) == "document"
        by_line = "target" in self.card or self.answers().reads_lines  # taught rows, not documents
        return lines_of(rows) if document and rows.has("text") and by_line else rows

    def of_values(self, values: Sequence[Any]) -> Examples:
        """Values in hand; where it reads several kinds, a dict of them for each row."""
        if len(self.processors) == 1:
            return self.kind.of_values(values)
        found = [kinds.kind(k).of_values([row[k] for row in values]) for k in self.processors]
        fields = {name: values for part in found for name, values in part.fields.items()}
        read_by = {name: kind for part in found for name, kind in part.kinds.items()}
        return replace(found[0], fields=fields, kinds=read_by)

    def conformal_level(self, confidence: float) -> float:
        if not self.calibration.conformal:
            raise WeightsError(
                "this model was not calibrated on held-out rows, so it cannot give a set at a "
                "confidence; train it with `layerwise fit`"
            )
        return conformal_quantile(np.asarray(self.calibration.conformal), 1 - confidence)

    def generate(self, prompt: str, n_tokens: int = 64) -> str:
        """What this model writes after `prompt`, always the likeliest token, until its end token.

        Errors: WeightsError for a model that does not continue text.
        """
        if self.task is None or "causal" not in self.network.HEADS:
            does = self.task.name if self.task else "other tasks to start from"
            what = f"it is a {self.family} for {does}"
            raise WeightsError(f"this model does not continue text: {what}")
        words = self.tokenizer
        ids = words.encode(prompt)
        ids = ids[:-1] if len(ids) > 1 and ids[-1] == words.eos_id else ids
        ids = ids or [words.bos_id if words.bos_id is not None else words.eos_id or 0]
        stop = () if words.eos_id is None else (words.eos_id,)
        tokens = torch.tensor([ids], device=next(self.network.parameters()).device)
        out = greedy.generate(self.network, tokens, n_tokens, stop)[0].tolist()
        return words.decode(out)[len(words.decode(ids)) :]

    # ---- keep ----------------------------------------------------------------------------------

    def save(self, folder: str | pathlib.Path) -> pathlib.Path:
        """Write it as a folder; see `model.saved`."""
        from layerwise.model.saved import save

        return save(self, pathlib.Path(folder))

    @property
    def published_names(self) -> dict[str, str]:
        """The naming of its tensors elsewhere, as weights/names.py reads it."""
        from layerwise.model.saved import OURS, saved_format

        form = self.card.get("format") or saved_format(self)
        return {"": ""} if form == OURS else models.family(self.family).PUBLISHED[form]


def for_task(base: Model, ends: Ends, settings: Settings) -> Model:
    """A base with the processors that a task asks for. Errors: OptionError where it cannot."""
    asked = base.network, ends, settings
    pairs = base.processors.items()
    found = {name: kinds.kind(name).for_base(processor, *asked) for name, processor in pairs}
    return replace(base, processors=found)


def ends_of(task: Task | type[Task]) -> Ends:
    """What a task asks of a network; its class does not know how many outputs."""
    return Ends(task.head_kind, 0 if isinstance(task, type) else task.n_outputs, task.reader)
