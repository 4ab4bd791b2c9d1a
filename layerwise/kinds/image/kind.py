"""The kind `image`: what is special about images, each question answered in a file beside this."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.data.array_files import arrays_of
from layerwise.data.arrays import open_arrays
from layerwise.data.examples import Examples, Finding
from layerwise.data.file_tables import (
    FILE_NAMES,
    held_column,
    metadata_files,
    names_files,
    open_held,
    open_metadata,
)
from layerwise.data.folders import one_file, open_folder
from layerwise.data.listing import (
    FileKind,
    Listing,
    is_image,
    mostly_text,
    split_of,
    starts_image,
    walk,
)
from layerwise.data.records import Reading, is_parquet, is_table
from layerwise.data.sources import Source
from layerwise.data.text_files import sniff
from layerwise.errors import DataError
from layerwise.kinds.contract import Choice, Ends, Kind, Looks, Place, Recognised, Shown, Start
from layerwise.kinds.image import audit, choose
from layerwise.kinds.image.arrays import pixels_of
from layerwise.kinds.image.augment import Augment
from layerwise.kinds.image.duplicates import pixel_features
from layerwise.kinds.image.pictures import data_uri
from layerwise.kinds.image.processor import ImageProcessor, decode
from layerwise.kinds.image.source import Images
from layerwise.settings import Settings
from layerwise.storage import read_json, write_json

NAMES = (*FILE_NAMES, "image", "image_path", "img")
FILES = FileKind("image", "images", is_image, NAMES, "Image", starts_image)
CONFIG = "preprocessor_config.json"


class Image(Kind):
    """Paths, bytes, or arrays of pixels."""

    name = "image"
    noun = "images"
    tensor = "image"
    ground = "pixels"
    accepts = "class folders, images with metadata.csv, Parquet, .npz, MNIST idx, CIFAR batches"
    suggested = "timm/resnet18.a1_in1k"
    alike = "show the same picture as another"

    # ---- finding and reading -------------------------------------------------------------------
    def recognise(self, place: Place, reading: Reading) -> Recognised | None:
        path, listing = place.path, place.listing
        if listing is not None:
            if not reading.kind and mostly_text([parts[-1] for parts in listing.files]):
                return None
            return Recognised(0.9, lambda: self.open_folder(listing, reading))
        if arrays_of(path, None, reading):
            return Recognised(1.0, lambda: self.open_arrays(path, None, reading))
        if is_image(path):
            return Recognised(0.95, lambda: one_file(path, FILES))
        if is_table(path) and (reading.kind or sniff(path) != "document"):
            return Recognised(0.9, lambda: self.open_table(path, reading))
        return None

    def open_arrays(self, path: Path, listing: Listing | None, reading: Reading) -> Examples | None:
        """Images of an array file; None for rows of numbers, unless it was said that they are."""
        arrays = arrays_of(path, listing, reading)
        if arrays is None or (not reading.kind and next(iter(arrays.inputs.values())).ndim == 2):
            return None

        def values(x: np.ndarray, names: list[str], findings: list[Finding]):
            pixels = pixels_of(x, arrays.source, findings)
            h, w, colour = *pixels.shape[1:3], "colour" if pixels.ndim == 4 else "grey"
            return pixels, f"{len(x):,} images of {h} x {w} pixels ({colour})"

        folder = path if listing is not None else path.parent
        return open_arrays(arrays, folder, reading.target_kind, self.name, values)

    def open_folder(self, listing: Listing, reading: Reading) -> Examples | None:
        """A folder as one of the ways to hold images; None where it holds none."""
        if tables := metadata_files(listing.root):
            return open_metadata(tables, listing, reading, FILES)
        if arrays_of(listing.root, listing, reading):
            return self.open_arrays(listing.root, listing, reading)
        if not any(is_image(listing.path(parts)) for parts in listing.files):
            return self.open_parquet(listing, reading)
        naming = [p for p in listing.here if is_table(p) and self.named_by(p, reading)]
        if len(naming) == 1:
            return open_metadata(naming, listing, reading, FILES)
        return open_folder(listing, FILES, reading.learn)

    def open_parquet(self, listing: Listing, reading: Reading) -> Examples | None:
        files = [parts for parts in listing.files if is_parquet(Path(parts[-1]))]
        if not files or not held_column(reading.table(listing.path(files[0])), FILES):
            return None
        raw = [reading.table(listing.path(parts)) for parts in files]
        return open_held(raw, list(map(split_of, files)), reading, FILES)

    def open_table(self, path: Path, reading: Reading) -> Examples | None:
        """The images that a table holds or names; None where it does neither."""
        raw = reading.table(path)
        if held_column(raw, FILES):
            return open_held([raw], [""], reading, FILES)
        named = path.name.lower().startswith("metadata.")
        if named or names_files(raw, path.parent, FILES):
            return open_metadata([path], walk(path.parent), reading, FILES)
        return None

    def named_by(self, path: Path, reading: Reading) -> bool:
        try:
            return names_files(reading.table(path), path.parent, FILES)
        except DataError:
            return False  # some notes beside the images

    def of_values(self, values: Sequence[Any]) -> Examples:
        found = [Path(x) if isinstance(x, str) else x for x in values]
        names = [f"image {i + 1}" for i in range(len(found))]
        return Examples({"image": found}, {"image": "image"}, names, np.full(len(found), "", "U5"))

    def look(self, examples: Examples) -> Looks:
        seen = audit.look_at_all(examples["image"], examples.names)
        exact, groups = audit.copies(seen)
        features = lambda rows, seed: pixel_features(seen.grey[rows], seen.colour[rows], seed)  # noqa: E731
        return Looks(seen.usable, exact, groups, seen.findings, features)

    def show(self, examples: Examples, row: int, side: int = 96) -> Shown:
        try:
            return Shown(image=data_uri(decode(examples["image"][row]), side))
        except DataError:
            return Shown()

    # ---- tensors -------------------------------------------------------------------------------
    def source(
        self, examples: Examples, processor: Any, augment: Any, dtype: torch.dtype, **options: Any
    ) -> Source:
        augment = augment if isinstance(augment, Augment) else Augment()
        return Images(examples, processor, augment, dtype, **options)

    def raw_picture(self, examples: Examples, row: int, processor: Any) -> np.ndarray | None:
        return processor.pixels(examples["image"][row])

    def example(
        self, family: str, variant: str, config: Any, size: int, rows: int
    ) -> dict[str, Tensor]:
        side = size or choose.natural_side(family, variant)
        return {"image": torch.zeros(rows, 3, side, side)}

    # ---- choosing ------------------------------------------------------------------------------
    def choose(self, train: Examples, ends: Ends, settings: Settings, reader: Any = None) -> Choice:
        return choose.network_for(train, ends, settings)

    def start(self, way: str, train: Examples, choice: Choice) -> Start:
        return choose.STARTS[choose.style_of(way, choice)]

    def study(self, train: Examples, settings: Settings) -> tuple[Any, list[str]]:
        """Whether augmentation may mirror."""
        if settings.augment != "auto" or choose.mirror_safe(train):
            return True, []
        said = "augmentation: no mirroring, because mirrored images look like other classes"
        return False, [said]

    def augmentation(self, processor: Any, settings: Settings, studied: Any) -> Augment:
        return choose.augmentation(processor.size[0], settings, bool(studied))

    # ---- saving --------------------------------------------------------------------------------
    def save(self, processor: Any, folder: Path) -> dict[str, Any]:
        write_json(folder / CONFIG, processor.to_dict())
        return {}

    def load(self, folder: Path, saved: Mapping[str, Any], config: Any) -> ImageProcessor:
        return ImageProcessor.from_dict(read_json(folder / CONFIG))

    def of_card(self, card: Any, network: Any, tokenizer: Callable[[], Any]) -> ImageProcessor:
        return ImageProcessor.from_dict(dict(card.processor))

    def published_config(self, processor: Any, labels: Sequence[str]) -> dict[str, Any]:
        """As timm writes it."""
        p = processor.to_dict()
        size = p.get("crop_size", p["size"])
        return {
            "num_classes": len(labels),
            "label_names": list(labels),
            "pretrained_cfg": {
                "input_size": [3, size["height"], size["width"]],
                "mean": p["image_mean"],
                "std": p["image_std"],
                "num_classes": len(labels),
            },
        }
