"""Toy task: pictures without their noise. The noise is drawn; the prediction is a picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from layerwise import runtime
from layerwise.data.examples import Batch, Examples
from layerwise.data.sources import Draw, Tensors
from layerwise.kinds.contract import PlainFeatures
from layerwise.kinds.image.pictures import data_uri
from layerwise.models.network import Network
from layerwise.tasks.task import Baseline, Mistake, Options, Task


@dataclass(frozen=True)
class PicturePrediction:
    """picture: (3, h, w) as the network gives it; truth: the same without noise."""

    picture: np.ndarray
    truth: np.ndarray
    name: str = ""

    def of_row(self, name: str, row: dict[str, Any], top: int, level: float | None) -> Self:
        return replace(self, name=name)

    def uri(self) -> str:
        return data_uri(((self.picture + 2) * 64).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))

    def row(self) -> dict[str, Any]:
        return {"name": self.name, "picture": self.uri()}

    def show(self) -> str:
        return f"{self.name}: a picture of {self.picture.shape[2]} x {self.picture.shape[1]}"


def distances(outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Any:
    """Mean squared distance of pictures (n, 3 h w), by rows that count so often."""
    each = ((outputs - targets) ** 2).mean(1)
    return float(each.mean()) if weights is None else weights @ each / weights.sum(-1)


class Clean(Task):
    name = "clean"
    score = "distance"
    metric = staticmethod(distances)
    higher_is_better = False
    head_kind = "picture"
    top = "picture"
    n_outputs = 0

    @classmethod
    def fits(cls, examples: Examples) -> int:
        return 2 if examples.target_kind == "none" and examples.kinds == {"image": "image"} else 0

    @classmethod
    def of(cls, examples: Examples, options: Options) -> Self:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def draw(self, batch: Batch, draw: Draw | None) -> Batch:
        seed, step = (0, 0) if draw is None else (draw.seed, draw.step)
        generator, image = runtime.generator(seed, step), batch["image"]
        level = torch.rand(len(batch), generator=generator)
        noise = torch.randn(image.shape, generator=generator) * level[:, None, None, None]
        noisy = {"image": image + noise.to(image), "level": level, "targets": image}
        return Batch(batch.tensors | noisy, batch.rows)

    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        said = network(**batch.select(network.READS)).float()
        loss = ((said - batch["targets"].float()) ** 2).mean((1, 2, 3)).sum()
        return loss, {"distance": loss.detach()}

    def lens(self, batch: Batch) -> list[str]:
        return ["the picture"] * len(batch)

    def example_targets(self, rows: int, main: Tensor) -> Tensors:
        return {"targets": main, "level": torch.zeros(rows)}

    def predict(self, network: Network, batch: Batch) -> Sequence[PicturePrediction]:
        said = network(**batch.select(network.READS)).float().cpu().numpy()
        truth = batch["targets"].float().cpu().numpy()
        return [PicturePrediction(a, b) for a, b in zip(said, truth, strict=True)]

    def scored(
        self, predictions: Sequence[PicturePrediction], examples: Examples
    ) -> tuple[np.ndarray, np.ndarray]:
        said, truth = (
            [p.picture.ravel() for p in predictions],
            [p.truth.ravel() for p in predictions],
        )
        return np.stack(said), np.stack(truth)

    def metrics(
        self, predictions: Sequence[PicturePrediction], examples: Examples
    ) -> dict[str, float]:
        return {self.score: distances(*self.scored(predictions, examples))}

    def mistakes(
        self, predictions: Sequence[PicturePrediction], examples: Examples
    ) -> list[Mistake]:
        said, truth = self.scored(predictions, examples)
        far = ((said - truth) ** 2).mean(1)
        return [Mistake(int(i), "the picture", f"off by {far[i]:.3f}") for i in np.argsort(-far)]

    def baseline(
        self, train: Examples, test: Examples, plain: Callable[[], PlainFeatures | None]
    ) -> Baseline:
        return Baseline("a grey picture", 1.0)
