"""The recipe of a training: where a kind's rows start from, then the user's own settings over it.

Every choice is a plain rule with its reason beside it; `fit` prints what was chosen.
"""

from layerwise.kinds.contract import Start
from layerwise.settings import Settings
from layerwise.train.run import Recipe

FEWEST, MOST = 300, 4000  # steps of a flexible start
AS_SET = (
    "grad_accum_steps", "ema", "layer_decay", "unfreeze", "keep", "seed", "loader_threads",
    "watch_every", "checkpointing", "compile",
)  # fmt: skip


def recipe_for(
    start: Start, n_rows: int, settings: Settings, augment: object = None, width: int = 0
) -> Recipe:
    """n_rows: to train on; augment: as their kind has it; width: of the network, 0 for unknown."""
    micro = settings.device_batch_size or max(1, start.batch // settings.grad_accum_steps)
    batch = min(micro * settings.grad_accum_steps, max(1, n_rows))
    per_epoch = max(1, n_rows // batch)
    epochs = settings.epochs or start.epochs
    steps = settings.steps or max(1, round(epochs * per_epoch))
    if not settings.epochs and not settings.steps:
        if start.flexible:  # little data needs more passes, much data fewer
            steps = min(max(steps, FEWEST), MOST)
        steps = max(steps, min(start.most_passes * per_epoch, start.least_read // batch))
    warmup = settings.warmup_steps if settings.warmup_steps >= 0 else round(0.05 * steps)
    every = settings.evaluate_every or max(per_epoch, -(-steps // 20))
    clips = start.grad_clip or settings.grad_clip != 1.0  # the default
    return Recipe(
        steps=steps,
        global_batch_size=batch,
        lr=settings.lr or start.rate_for(start.lr, width),
        optimizer=start.optimizer if settings.optimizer == "auto" else settings.optimizer,
        weight_decay=start.weight_decay if settings.weight_decay < 0 else settings.weight_decay,
        schedule=start.schedule if settings.schedule == "cosine" else settings.schedule,
        warmup_steps=min(warmup, max(0, steps - 1)),
        grad_clip=settings.grad_clip if clips else 0.0,
        augment=augment,
        evaluate_every=every,
        checkpoint_every=settings.checkpoint_every or every,
        **{name: vars(settings)[name] for name in AS_SET},
    )
