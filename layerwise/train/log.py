"""The run's numbers: one JSON line each in metrics.jsonl, TensorBoard when it is installed."""

import importlib.util
import json
import math
import pathlib
from typing import Any


class MetricsLog:
    """Appends rows such as {"step": 10, "loss": 0.3}; on resume drops what came after `step`."""

    def __init__(self, folder: pathlib.Path, step: int = 0, tensorboard: bool = True):
        self.path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(folder) if r["step"] <= step] if step else []
        self.path.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self.file = self.path.open("a", buffering=1)
        self.board = open_board(folder, step) if tensorboard else None

    def write(self, step: int, **values: object) -> None:
        values = {k: finite(v) for k, v in values.items()}
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def finite(value: object) -> Any:
    """JSON has no NaN: what is not finite is written as a string that says so."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics; a last line cut off by a kill is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def open_board(folder: pathlib.Path, step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
