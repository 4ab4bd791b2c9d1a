"""Ways to make a run fit, each rehearsed and planned like the run itself.

Order: what changes nothing but time first (smaller micro-batches with the same global batch,
checkpointing per layer), then lower precision, then training fewer weights.
"""

from collections.abc import Iterator
from dataclasses import replace

from layerwise.planning import cost, timing
from layerwise.planning.forecast import Plan, Remedy, Request
from layerwise.planning.plan import plan_of
from layerwise.planning.step import Setting

SMALLEST = 2  # rows of a micro-batch: normalisation over a batch of one is not defined


def suggest(plan: Plan, available: float) -> list[Remedy]:
    """What would fit into `available` bytes, the least intrusive first; empty if the plan does."""
    found: list[Remedy] = []
    if plan.fits(available):
        return found
    for words, request in _candidates(plan.request):
        remedy = _largest_that_fits(words, request, available)
        if remedy is not None and remedy.plan.setting not in [r.plan.setting for r in found]:
            found.append(_paced(remedy, plan))
    return found


def _candidates(request: Request) -> Iterator[tuple[str, Request]]:
    setting = request.setting
    yield "", request
    if not setting.checkpointing:
        yield "checkpointing per layer", _with(request, replace(setting, checkpointing=True))
    if setting.dtype == "fp32" and request.hardware.kind != "mps":
        yield "dtype bf16", _with(request, replace(setting, dtype="bf16"))
    if not setting.freeze:
        yield "a frozen base, only the head trained", _with(request, replace(setting, freeze=True))


def _with(request: Request, setting: Setting) -> Request:
    return replace(request, setting=setting)


def _largest_that_fits(words: str, request: Request, available: float) -> Remedy | None:
    """The micro-batch halved as often as it takes; None when the smallest does not fit.

    Memory grows about linearly with the rows, so the whole batch and the smallest say where to
    look; what is offered has been planned itself.
    """
    asked, n = request.setting, request.setting.device_batch_size
    sizes = [n, *(n >> i for i in range(1, n.bit_length()) if n >> i >= SMALLEST)]

    def planned(size: int) -> Plan:
        return plan_of(_with(request, asked.with_device_batch(size)))

    largest, smallest = planned(sizes[0]), planned(sizes[-1])
    if not smallest.fits(available):
        return None
    found = largest if largest.fits(available) else smallest
    if found is smallest:
        most, least = largest.memory["peak"].value, smallest.memory["peak"].value
        share = (available - least) / max(1.0, most - least)
        likely = sizes[-1] + share * (sizes[0] - sizes[-1])
        tries = (planned(size) for size in sizes[1:-1] if size <= 1.2 * likely)
        found = next((plan for plan in tries if plan.fits(available)), smallest)
    return Remedy(_words(words, found.setting, asked), found)


def _words(words: str, setting: Setting, asked: Setting) -> str:
    size, parts = setting.device_batch_size, setting.grad_accum_steps
    batch = f"device_batch_size {size} with grad_accum_steps {parts}"
    return ", ".join(filter(None, (words, "" if size == asked.device_batch_size else batch)))


def _paced(remedy: Remedy, before: Plan) -> Remedy:
    """Time by the roofline is rough; where the run was measured, scale what was measured."""
    if before.timed_by == "roofline":
        return remedy
    machine = before.request.hardware
    old = timing.from_roofline(before.trace, machine, before.steps).value
    seconds = before.seconds.scaled(remedy.plan.seconds.value / old)
    plan = replace(
        remedy.plan,
        seconds=seconds,
        joules=cost.energy(seconds, machine),
        money=cost.money(seconds, machine),
        timed_by=f"{before.timed_by}, scaled by the roofline",
    )
    return replace(remedy, plan=plan)
