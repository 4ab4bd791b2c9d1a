"""The plan: what a run needs and costs, whether it fits, and what would fit instead.

It keeps what it was asked, so that each remedy is planned by the same code as the run itself.
"""

from dataclasses import dataclass, field
from typing import Any

from layerwise.data.examples import Batch
from layerwise.errors import DoesNotFit
from layerwise.models.network import Network
from layerwise.planning import sentences
from layerwise.planning.estimate import Estimate
from layerwise.planning.hardware import Hardware
from layerwise.planning.rehearsal import Trace
from layerwise.planning.scaling import Forecast
from layerwise.planning.step import Builder, Learned, Setting


@dataclass(frozen=True)
class Request:
    """What a plan was asked for; a remedy changes one thing in it."""

    network: Network | Builder
    batch: Batch
    task: Learned
    setting: Setting
    steps: int
    hardware: Hardware
    base: int | None  # resident bytes of the process before the run
    extra: int  # bytes that live beside the step: prefetched batches, a decoded data set


@dataclass(frozen=True)
class Remedy:
    """Something that would fit, and its own plan."""

    words: str  # "device_batch_size 8 with grad_accum_steps 4"
    plan: "Plan"


@dataclass(frozen=True)
class Plan:
    """What a run needs and costs. Bytes, seconds, joules, US dollars; each with its interval."""

    params: int
    trainable: int
    embedding: int
    flops_per_sample: float
    flops_total: float
    memory: dict[str, Estimate]  # weights, gradients, optimizer, activations, buffers, ..., peak
    seconds: Estimate
    joules: Estimate
    money: Estimate
    steps: int
    hardware: str
    setting: Setting
    timed_by: str  # "5 measured steps" or "roofline"
    trace: Trace = field(repr=False)
    request: Request = field(repr=False)
    forecast: Forecast | None = None  # of the loss, where a scaling law was fitted

    def fits(self, available: float) -> bool:
        """Whether the expected peak stays within `available` bytes."""
        return self.memory["peak"].value <= available

    def suggest(self, available: float) -> list[Remedy]:
        """What would fit, each planned anew, the least intrusive first."""
        from layerwise.planning.remedies import suggest

        return suggest(self, available)

    def require_fit(self, available: float | None = None) -> None:
        """Errors: `DoesNotFit` when the peak exceeds `available` bytes, with what would fit.

        available: None for what the hardware had when the plan was made.
        """
        available = self.request.hardware.memory if available is None else available
        if not self.fits(available):
            raise DoesNotFit(sentences.does_not_fit(self, available, self.suggest(available)))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; value, low and high of each estimate."""
        out = {k: vars(v) if isinstance(v, Estimate) else v for k, v in vars(self).items()}
        del out["trace"], out["request"]
        return out | {
            "setting": {k: v for k, v in vars(self.setting).items() if not callable(v)},
            "memory": {part: vars(e) for part, e in self.memory.items()},
            "layers": [vars(layer) for layer in self.trace.layers],
            "forecast": self.forecast and self.forecast.beside(self.forecast.best.tokens),
        }

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much) for printing."""
        return sentences.rows(self)

    def lines(self) -> list[str]:
        """The rows as aligned text, and what each size would come to, where that was measured."""
        width = max(len(what) for what, _ in self.rows()) + 2
        out = [f"{what:<{width}}{much}" for what, much in self.rows()]
        return out + (sentences.curve(self.forecast) if self.forecast else [])

    def __str__(self) -> str:
        return sentences.summary(self)
