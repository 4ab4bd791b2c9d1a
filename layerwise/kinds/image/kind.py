"""The kind `image`: what is special about images, each question answered in a file beside this."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerwise.data import file_tables
from layerwise.data.array_files import arrays_of
from layerwise.data.arrays import open_arrays
from layerwise.data.examples import Examples, Finding
from layerwise.data.folders import one_file
from layerwise.data.listing import FileKind, Listing, Place, is_image, starts_image
from layerwise.data.records import Reading, is_table
from layerwise.data.sources import Source, Tensors
from layerwise.data.text_files import sniff
from layerwise.errors import DataError
from layerwise.kinds.contract import CONFIG, Choice, Ends, Kind, Looks, Recognised, Shown, Start
from layerwise.kinds.image import audit, choose
from layerwise.kinds.image.arrays import pixels_of
from layerwise.kinds.image.augment import Augment
from layerwise.kinds.image.duplicates import pixel_features
from layerwise.kinds.image.pictures import data_uri
from layerwise.kinds.image.processor import ImageProcessor, decode
from layerwise.kinds.image.source import Images
from layerwise.models.network import Network
from layerwise.settings import Settings
from layerwise.storage import read_json

NAMES = (*file_tables.FILE_NAMES, "image", "image_path", "img")
FILES = FileKind("image", "images", is_image, NAMES, "Image", starts_image)


class Image(Kind[ImageProcessor]):
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
            if not reading.kind and listing.mostly_text:
                return None
            return Recognised(0.9, lambda: self.open_folder(place, listing, reading))
        if arrays_of(place, reading):
            return Recognised(1.0, lambda: self.open_arrays(place, reading))
        if is_image(path):
            return Recognised(0.95, lambda: one_file(path, FILES))
        if is_table(path) and (reading.kind or sniff(path) != "document"):
            return Recognised(0.9, lambda: file_tables.open_table(path, reading, FILES))
        return None

    def open_arrays(self, place: Place, reading: Reading) -> Examples | None:
        """Images of an array file; None for rows of numbers, unless it was said that they are."""
        arrays = arrays_of(place, reading)
        if arrays is None or (not reading.kind and next(iter(arrays.inputs.values())).ndim == 2):
            return None

        def values(x: np.ndarray, names: list[str], findings: list[Finding]):
            pixels = pixels_of(x, arrays.source, findings)
            h, w, colour = *pixels.shape[1:3], "colour" if pixels.ndim == 4 else "grey"
            return pixels, f"{len(x):,} images of {h} x {w} pixels ({colour})"

        return open_arrays(arrays, place.folder, reading.target_kind, self.name, values)

    def open_folder(self, place: Place, listing: Listing, reading: Reading) -> Examples | None:
        """A folder as one of the ways to hold images; None where it holds none."""
        if not file_tables.metadata_files(listing.root) and arrays_of(place, reading):
            return self.open_arrays(place, reading)
        return file_tables.open_files(listing, reading, FILES)

    def of_values(self, values: Sequence[Any]) -> Examples:
        found = [Path(x) if isinstance(x, str) else x for x in values]
        return Examples.of("image", found, [f"image {i + 1}" for i in range(len(found))])

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
        self,
        examples: Examples,
        processor: ImageProcessor,
        augment: object,
        dtype: torch.dtype,
        **options: Any,
    ) -> Source:
        augment = augment if isinstance(augment, Augment) else Augment()
        return Images(examples, processor, augment, dtype, **options)

    def raw_picture(
        self, examples: Examples, row: int, processor: ImageProcessor
    ) -> np.ndarray | None:
        return processor.pixels(examples["image"][row])

    def example(self, family: str, variant: str, config: Any, size: int, rows: int) -> Tensors:
        side = size or choose.natural_side(family, variant)
        return {"image": torch.zeros(rows, 3, side, side)}

    # ---- choosing ------------------------------------------------------------------------------
    def choose(
        self, train: Examples, ends: Ends, settings: Settings, reader: ImageProcessor | None = None
    ) -> Choice:
        return choose.network_for(train, ends, settings)

    def processor_for(self, train: Examples, ends: Ends, settings: Settings) -> ImageProcessor:
        return choose.processor_for(train, choose.usual_side(train, settings))

    def start(self, way: str, train: Examples, choice: Choice) -> Start:
        return choose.STARTS[choose.style_of(way, choice)]

    def study(self, train: Examples, settings: Settings) -> tuple[Any, list[str]]:
        """Whether augmentation may mirror."""
        if settings.augment != "auto" or choose.mirror_safe(train):
            return True, []
        said = "augmentation: no mirroring, because mirrored images look like other classes"
        return False, [said]

    def augmentation(
        self, processor: ImageProcessor, settings: Settings, studied: object
    ) -> Augment:
        return choose.augmentation(processor.size[0], settings, bool(studied))

    # ---- saving --------------------------------------------------------------------------------
    def load(self, folder: Path, saved: Mapping[str, Any], config: Any) -> ImageProcessor:
        return ImageProcessor.from_dict(read_json(folder / CONFIG))

    def of_card(self, card: Any, network: Network, tokenizer: Callable[[], Any]) -> ImageProcessor:
        return ImageProcessor.from_dict(dict(card.processor))

    def published_config(self, processor: ImageProcessor, labels: Sequence[str]) -> dict[str, Any]:
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
