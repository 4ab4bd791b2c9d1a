"""What is known of a training, and the measures that the rules of the diagnosis compare.

Legend: "chance" is the loss of the best constant answer; the "fall" is the share of it that
training has removed; a layer's relative gradient is the norm of its gradient over the norm of its
weights; "pace" is the median over the layers of update over weights in one step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from layerwise.inspection import limits
from layerwise.inspection.signal import Signal
from layerwise.inspection.structure import Structure


@dataclass
class Case:
    """All that is known of a training, and what follows from it."""

    history: Sequence[dict[str, Any]]
    curve: Sequence[dict[str, Any]] = ()
    structure: Structure | None = None
    signal: Signal | None = None
    chance: float | None = None
    carried: np.ndarray | None = None  # (n,) share of each text's tokens that carry loss
    likeness: float = 0.0  # mean cosine between different texts' features
    lr: float = 0.0
    optimizer: str = ""
    frozen: frozenset[str] = frozenset()
    stopped: str = ""

    @cached_property
    def names(self) -> list[str]:
        return list(self.history[0]["layers"])

    @cached_property
    def losses(self) -> np.ndarray:
        """The finite training losses, in order."""
        rows = self.curve or self.history
        values = [float(r["loss"]) for r in rows if r.get("loss") is not None]
        return np.array([v for v in values if math.isfinite(v)])

    @cached_property
    def broke(self) -> bool:
        """Whether a loss or gradient was not finite."""
        marks = any("guardian" in r or not finite(r.get("loss")) for r in self.curve)
        return bool(self.stopped) or marks

    @cached_property
    def start(self) -> float:
        return float(self.chance or (np.median(self.losses[:3]) if len(self.losses) else math.nan))

    @cached_property
    def end(self) -> float:
        tail = max(3, len(self.losses) // 8)
        return float(np.median(self.losses[-tail:])) if len(self.losses) else math.nan

    @cached_property
    def fall(self) -> float:
        return (self.start - self.end) / self.start if self.start else 0.0

    @cached_property
    def poor(self) -> bool:
        """Whether it has not learned; False where no loss is known."""
        return self.broke or bool(len(self.losses) and not self.fall > limits.POOR_FALL)

    @cached_property
    def slow(self) -> bool:
        """Whether it has learned little, which is enough where the cause itself can be seen."""
        return self.broke or bool(len(self.losses) and not self.fall > limits.SLOW_FALL)

    def loss_sentence(self) -> str:
        if self.broke:
            return "loss or gradient stopped being finite"
        return f"the loss stands at {self.end:.3g}, where guessing gives {self.start:.3g}"

    def values(self, key: str, at: int) -> dict[str, float]:
        """{layer: value} in snapshot number `at`; layers without a value are left out."""
        layers = self.history[at]["layers"]
        return {n: s[key] for n, s in layers.items() if s.get(key) is not None and finite(s[key])}

    def hidden(self, key: str, at: int) -> dict[str, float]:
        """The same without the last layer, whose outputs are the answer."""
        return {n: v for n, v in self.values(key, at).items() if n != self.names[-1]}

    def always(self, key: str, numbers: Sequence[int]) -> dict[str, float]:
        """{layer: its smallest value in these snapshots}, for the layers of the first one."""
        found = [self.values(key, i) for i in numbers]
        return {n: min(v.get(n, 0.0) for v in found) for n in found[0]} if found else {}

    def flow(self, at: int) -> dict[str, float]:
        """{layer: relative gradient} of the layers that train and have matrices."""
        norms, weights = self.values("grad_norm", at), self.values("weight_norm", at)
        gains = self.values("gain", at)
        return {n: g / weights[n] for n, g in norms.items() if weights.get(n) and n in gains}

    def tilt(self, at: int) -> float | None:
        """Relative gradient of the lowest third of the layers over that of the highest third."""
        flow = list(self.flow(at).values())
        if len(flow) < 4:
            return None
        third = max(1, len(flow) // 3)
        low, high = np.median(flow[:third]), np.median(flow[-third:])
        return float(low / high) if high > 0 else None

    @cached_property
    def complete(self) -> list[int]:
        """Snapshots whose gradients were read."""
        return [i for i, _ in enumerate(self.history) if self.values("grad_norm", i)]

    def pace(self, at: int) -> float | None:
        """Median update ratio of the layers that moved."""
        moved = [v for v in self.values("update_ratio", at).values() if v > 0]
        return float(np.median(moved)) if moved else None

    @cached_property
    def paces(self) -> list[float]:
        return [p for i in range(len(self.history)) if (p := self.pace(i)) is not None]

    def wild(self, first: int) -> bool:
        """Whether one of the first updates was far too large."""
        return max(self.paces[:first], default=0.0) > limits.WILD

    @cached_property
    def fade(self) -> float:
        """Size of the last hidden activations over that of the inputs, in the first snapshot.

        1 for transformers: a norm stands before every matrix, whatever the stream's own size.
        """
        if self.values("entropy", 0):
            return 1.0
        sizes = list(self.hidden("act_std", 0).values())
        inputs = self.history[0].get("inputs", {}).get("std") or 1.0
        return sizes[-1] / inputs if sizes else 1.0

    @cached_property
    def alike(self) -> float:
        """The spread in the highest third of the hidden layers in the first snapshot."""
        spread = list(self.hidden("spread", 0).values())
        top = spread[-max(1, len(spread) // 3) :]
        return float(np.median(top)) if top else 1.0

    @cached_property
    def tilts(self) -> list[float]:
        """Relative gradient, bottom over top, in the first snapshots."""
        return [t for i in self.complete[:3] if (t := self.tilt(i)) is not None]

    @property
    def plain_and_deep(self) -> bool:
        s = self.structure
        return s is not None and not s.residual and s.shortest >= limits.DEEP

    @property
    def sound_pace(self) -> bool:
        return bool(self.paces) and max(self.paces) > limits.IDLE and not self.wild(4)

    def lost_entries(self, at: int) -> dict[str, float]:
        """Share of zero gradient entries by layer, beyond what silent units account for."""
        dead, below, lost = self.values("dead", at), 0.0, {}
        for name, zeros in self.values("zero_grad", at).items():
            own = dead.get(name, 0.0)
            lost[name] = max(0.0, zeros - (1 - (1 - own) * (1 - below)))
            below = own
        return lost

    def aimed_lr(self) -> float:
        """A learning rate whose first updates have a sound size against the weights."""
        aim = limits.AIM.get(self.optimizer, limits.AIM[""])
        at = next((i for i in range(len(self.history)) if self.pace(i)), None)
        if at is None:
            return self.lr / 10
        used = self.history[at].get("lr") or self.lr
        return float(f"{used * aim / (self.pace(at) or aim):.2g}")


def finite(value: float | str | None) -> bool:
    """Whether a value is a finite number; None counts as finite: it was not measured."""
    try:
        return value is None or math.isfinite(float(value))
    except ValueError:
        return False
