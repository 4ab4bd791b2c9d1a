"""A plan in words and numbers that people read."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from layerwise.console import duration
from layerwise.planning.estimate import Estimate

if TYPE_CHECKING:
    from layerwise.planning.forecast import Plan, Remedy
    from layerwise.planning.scaling import Forecast

_NAMES = {
    "weights": "weights",
    "gradients": "gradients, at most",
    "optimizer": "optimiser state",
    "activations": "activations, at most",
    "autocast": "weights in the dtype of the arithmetic",
    "buffers": "buffers",
    "inputs": "inputs",
    "temporary": "temporary, at most",
}


def rows(plan: "Plan") -> list[tuple[str, str]]:
    """(what, how much), in the order in which a person asks."""
    parts = [(_NAMES[k], size(e.value)) for k, e in plan.memory.items() if k in _NAMES and e.value]
    rows = plan.setting.global_batch_size
    batch = f"{plan.setting.device_batch_size} x {plan.setting.grad_accum_steps}"
    return [
        ("parameters", f"{plan.params:,} ({plan.trainable:,} trained)"),
        ("batch", f"{batch} = {rows} rows per step, {plan.steps:,} steps"),
        ("FLOPs per sample", count(plan.flops_per_sample)),
        ("FLOPs in all", count(plan.flops_total)),
        *parts,
        ("peak memory", between(plan.memory["peak"], size)),
        (f"time on {plan.hardware} ({plan.timed_by})", between(plan.seconds, duration)),
        ("energy", between(plan.joules, joules)),
        ("money", between(plan.money, dollars)),
    ]


def curve(forecast: "Forecast", around: int = 3) -> list[str]:
    """The expected loss of the sizes around the best one, for the compute at hand."""
    first = max(0, forecast.chosen - around)
    out = [f"{forecast.unit.replace('_', ' ')} expected of each size in this time:"]
    for c in forecast.curve[first : forecast.chosen + around + 1]:
        epochs = c.tokens / forecast.law.unique_tokens
        best = "   best" * (c is forecast.best)
        out.append(
            f"  {c.name:<8}{count(c.params):>14} params {c.tokens / 1e6:9.2f}M tokens"
            f" {epochs:5.1f} epochs   {between(c.loss, lambda x: f'{x:.3f}')}{best}"
        )
    return out


def summary(plan: "Plan") -> str:
    """One line."""
    return (
        f"{count(plan.params)} parameters, {between(plan.memory['peak'], size)} of memory, "
        f"{between(plan.seconds, duration)} for {plan.steps:,} steps on {plan.hardware} "
        f"({plan.timed_by}), {joules(plan.joules.value)}, {dollars(plan.money.value)}"
    )


def does_not_fit(plan: "Plan", available: float, remedies: "list[Remedy]") -> str:
    """The sentence for a run that exceeds the memory at hand."""
    needed = (
        f"this run needs about {size(plan.memory['peak'].value)} of memory on {plan.hardware}, "
        f"and {size(available)} are available"
    )
    if not remedies:
        return f"{needed}; nothing tried would fit: take a smaller network or another machine"
    ways = "; or ".join(f"{r.words} ({size(r.plan.memory['peak'].value)})" for r in remedies)
    return f"{needed}. What would fit: {ways}"


def between(estimate: Estimate, unit: Callable[[float], str]) -> str:
    """3.1 GB (2.9 GB to 3.4 GB)."""
    return f"{unit(estimate.value)} ({unit(estimate.low)} to {unit(estimate.high)})"


def count(n: float) -> str:
    """61.0 million, 2.3e15 for what has no usual word."""
    for bound, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if bound <= n < 1000 * bound:
            return f"{n / bound:.1f} {word}"
    return f"{n:.2e}" if n >= 1e15 else f"{n:,.0f}"


def size(nbytes: float) -> str:
    for bound, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if nbytes >= bound:
            return f"{nbytes / bound:.{0 if nbytes >= 100 * bound else 1}f} {unit}"
    return f"{nbytes:.0f} bytes"


def joules(value: float) -> str:
    for bound, unit in ((3.6e6, "kWh"), (3600, "Wh")):
        if value >= 0.5 * bound:
            return f"{value / bound:.1f} {unit}"
    return f"{value:.0f} J"


def dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 0.1 else f"{100 * value:.2g} US cents"
