"""Toy kind: a folder with pairs.json, {file name: [caption, label]}; each row a picture and a text.

A row without a label has "" there; where all have none, nothing is learned of the caption.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.data.examples import Examples
from layerwise.data.listing import Place
from layerwise.data.records import Reading
from layerwise.data.sources import Tensors
from layerwise.kinds.contract import Kind, Recognised

FILE = "pairs.json"


class Pairs(Kind):
    """It finds rows; kinds that are there already read them."""

    name = "pairs"
    noun = "pictures with a text"
    tensor = "pairs"
    ground = "pixels and words"
    accepts = f"a folder with {FILE}"

    def recognise(self, place: Place, reading: Reading) -> Recognised | None:
        found = place.path / FILE
        return Recognised(1.0, lambda: opened(place.path)) if found.exists() else None

    def of_values(self, values: Sequence[Any]) -> Examples:
        raise AssertionError("no model reads this kind itself")

    def example(self, family: str, variant: str, config: Any, size: int, rows: int) -> Tensors:
        raise AssertionError("no network reads this kind itself")


def opened(folder) -> Examples:
    said = json.loads((folder / FILE).read_text())
    names, labels = list(said), sorted({label for _, label in said.values()} - {""})
    fields = {"image": [folder / name for name in names]}
    texts = [caption for caption, _ in said.values()]
    if any(texts):
        fields["text"] = texts
    return Examples(
        fields,
        {"image": "image", "text": "text"} if any(texts) else {"image": "image"},
        names,
        np.full(len(names), "", "U5"),
        f"{len(names)} pictures" + " with texts" * any(texts),
        np.array([labels.index(label) for _, label in said.values()]) if labels else None,
        "class" if labels else "none",
        tuple(labels),
        str(folder),
    )
