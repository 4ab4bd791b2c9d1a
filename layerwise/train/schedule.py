"""The learning rate's course: pure functions of the step, so that resuming needs no state."""

import math

from layerwise.errors import unknown


def lr_factor(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    """What the peak learning rate is multiplied by at `step` (0 <= step < steps).

    cosine: half a cosine down to 1%; linear: a line down to 0; wsd: constant, then a line down over
    the last fifth (warm-up, stable, decay: Hu et al., MiniCPM, arXiv:2404.06395); constant.
    All begin with a linear warm-up from 1/warmup_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)  # 0 <= progress < 1
    if schedule == "cosine":
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "wsd":
        return min(1.0, (1 - progress) / 0.2)
    if schedule == "constant":
        return 1.0
    raise unknown("schedule", schedule, ("cosine", "linear", "wsd", "constant"))
