"""Images: any file, bytes or array to 8-bit RGB, and the evaluation transform of a network.

The transform is torchvision's and timm's (Pillow's antialiased resize, then a centre crop), to the
pixel, and is saved as Hugging Face's `preprocessor_config.json`.

Departures, all before the transform: EXIF orientation is applied, transparency is laid over white,
16-bit grey is scaled to 8 bits instead of clipped, and images of more than MAX_PIXELS are refused.

Shapes: B images, h x w pixels; pixels are uint8, rows first, channels last, RGB.
"""

import io
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from layerwise.errors import DataError, OptionError, unknown

Raw = Path | str | bytes | np.ndarray

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, Pillow's own limit: above is a "bomb"
EXIF_ORIENTATION = 0x0112
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHUNK_BYTES = 1 << 18  # of pixels normalised at a time, so that they stay in the processor's cache

_warnings_lock = threading.Lock()  # warning filters belong to the process, not to the thread


def decode(raw: Raw, name: str = "", short_side: int = 0) -> np.ndarray:
    """One image as uint8 RGB (h, w, 3).

    raw: a path, the bytes of a file, or a uint8 array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4).
    name: what to call it in an error; a path by default.
    short_side: JPEGs may be decoded at an eighth, a quarter or half of their size, yet no smaller
        than this short side. Several times faster, not exact: for training pixels only.
    Of an animation the first frame. Errors: DataError naming the file, whatever is wrong with it.
    """
    return np.asarray(open_image(raw, name, short_side))


def open_image(raw: Raw, name: str = "", short_side: int = 0) -> Image.Image:
    """As `decode`, as a Pillow image of mode RGB."""
    if isinstance(raw, np.ndarray):
        return from_array(raw, name or "an array")
    is_path = isinstance(raw, str | os.PathLike)
    name = name or (str(raw) if is_path else f"an image of {len(raw)} bytes")
    try:
        with open(raw, "rb") if is_path else io.BytesIO(raw) as file:
            return read(file, name, short_side)
    except OSError as e:
        raise DataError(f"{name}: cannot be opened ({e.strerror or e}); check the file") from e


def read(file: Any, name: str, short_side: int) -> Image.Image:
    if not file.read(1):
        raise DataError(f"{name}: the file is empty (0 bytes); delete or replace it")
    file.seek(0)
    try:
        with quietly():
            image = Image.open(file)
        check_size(image.size, name)
        if short_side:
            image.draft("RGB", (short_side, short_side))
        image.load()
        return to_rgb(upright(image), name)
    except DataError:
        raise
    except Image.UnidentifiedImageError as e:
        raise DataError(f"{name}: not an image in a format that Pillow reads; replace it") from e
    except Image.DecompressionBombError as e:
        raise DataError(f"{name}: {e} Scale it down, or leave it out") from e
    except Exception as e:  # damaged files make decoders raise almost anything
        raise DataError(f"{name}: damaged or truncated ({e}); replace the file") from e


@contextmanager
def quietly() -> Iterator[None]:
    """Without Pillow's warnings: of size, which is refused here, and of EXIF that is garbled."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_size(size: tuple[int, int], name: str) -> None:
    """Errors: DataError for no pixels, or more than MAX_PIXELS, before memory is taken."""
    w, h = size
    if w < 1 or h < 1:
        raise DataError(f"{name}: has no pixels ({w} x {h}); replace it")
    if w * h > MAX_PIXELS:
        raise DataError(
            f"{name}: {w:,} x {h:,} = {w * h:,} pixels, more than the limit of {MAX_PIXELS:,} "
            "(a decompression bomb?); scale it down, or leave it out"
        )


def orientation(image: Image.Image) -> int:
    """What EXIF says of it, 1 (upright) where it says nothing or is garbled."""
    said = 1
    with quietly(), suppress(Exception):  # garbled bytes make its parser raise almost anything
        said = image.getexif().get(EXIF_ORIENTATION, 1)
    return said if said in range(2, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as EXIF says."""
    return ImageOps.exif_transpose(image) if orientation(image) > 1 else image


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB from any mode: transparency over white, 16-bit grey scaled."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return grey_from_16_bit(np.asarray(image), name)
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, pixels).convert("RGB")
    return image.convert("RGB")


def grey_from_16_bit(values: np.ndarray, name: str) -> Image.Image:
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or high > 65535:
        raise DataError(
            f"{name}: grey values of {values.dtype} from {low} to {high} have no fixed white; save "
            "it with 8 or 16 bits"
        )
    scaled = (values.astype(np.uint32) + 128) // 257  # 65535 -> 255, to the nearest
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def from_array(values: np.ndarray, name: str) -> Image.Image:
    """Errors: DataError for another dtype than uint8 or another shape than an image's."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    shaped = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if values.dtype != np.uint8 or not shaped:
        raise DataError(
            f"{name}: a uint8 array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) was expected, "
            f"{values.dtype} of shape {values.shape} came; put the channels last, scale to 0..255"
        )
    check_size((values.shape[1], values.shape[0]), name)
    return to_rgb(Image.fromarray(np.ascontiguousarray(values)), name)


@dataclass(frozen=True)
class ImageProcessor:
    """What turns a raw image into a network's input; the same in training and serving.

    size: (h, w) of the centre crop; smaller images are padded with black, as torchvision does.
    resize: the short side before the crop (aspect kept), or (h, w) exactly, or None for none.
    interpolation: "bicubic", "bilinear", "nearest" or "lanczos"; always antialiased (Pillow).
    mean, std: per channel for pixels in 0..1, in the order of `channel_order`.
    crop_down: where an odd number of pixels is spare, the crop starts at the half rounded down, as
        in TensorFlow and Caffe, instead of at the even number, as in torchvision and timm.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] | None = 256
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channel_order: str = "RGB"
    crop_down: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in RESAMPLE:
            raise unknown("interpolation", self.interpolation, RESAMPLE)
        if self.channel_order not in ("RGB", "BGR"):
            raise unknown("channel order", self.channel_order, ("RGB", "BGR"))
        resize = self.resize if isinstance(self.resize, tuple) else (self.resize,) * 2
        sides = [1 if side is None else side for side in (*self.size, *resize)]
        if len(sides) != 4 or min(sides) < 1:
            raise OptionError(
                "a size (h, w) and a resize of at least 1 pixel were expected, "
                f"{self.size} and {self.resize} came"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise OptionError(f"3 means and 3 positive stds were expected: {self.mean} {self.std}")

    @classmethod
    def from_crop_pct(cls, side: int, crop_pct: float, **fields: Any) -> "ImageProcessor":
        """timm's way: a crop of side x side out of a short side of floor(side / crop_pct)."""
        return cls(size=(side, side), resize=math.floor(side / crop_pct), **fields)

    def pixels(self, raw: Raw, name: str = "") -> np.ndarray:
        """Decoded, resized, cropped: uint8 RGB (h, w, 3) of this `size`."""
        image = open_image(raw, name)
        h, w = self.resized(image.height, image.width, name or describe(raw))
        if (h, w) != (image.height, image.width):
            image = image.resize((w, h), RESAMPLE[self.interpolation])  # pyright: ignore
        return centre_crop(np.asarray(image), self.size, self.crop_down)

    def resized(self, h: int, w: int, name: str = "an image") -> tuple[int, int]:
        """The size after resizing, rounded down as torchvision rounds.

        Errors: DataError where an extreme aspect ratio would make it a bomb.
        """
        if self.resize is None:
            return h, w
        if isinstance(self.resize, tuple):
            return self.resize
        longer = int(self.resize * max(h, w) / min(h, w))
        check_size((longer, self.resize), f"{name} ({w} x {h}, resized)")
        return (self.resize, longer) if h <= w else (longer, self.resize)

    def keeps(self, h: int, w: int) -> bool:
        """Whether images of h x w pass through `pixels` unchanged."""
        return (h, w) == self.size and self.resized(h, w) == (h, w)

    def normalise(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """RGB pixels in 0..255, uint8 or float (B, h, w, 3), to inputs (B, 3, h, w).

        The result lies in memory as channels_last. Bit for bit the same for any thread count.
        """
        if self.channel_order == "BGR":
            pixels = pixels.flip(-1)
        pixels = pixels.contiguous()
        B, h, w, _ = pixels.shape
        scale = torch.tensor([1 / (255 * s) for s in self.std], dtype=torch.float64)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)])
        scale, shift = scale.float().repeat(w), shift.float().repeat(w)  # (3 w,): long inner loops
        out = torch.empty((B, h, w, 3), dtype=dtype)
        for part in chunks(B, h * w * 3):
            x = out[part] if dtype == torch.float32 else torch.empty(out[part].shape)
            x.copy_(pixels[part]).view(-1, 3 * w).mul_(scale).add_(shift)
            if dtype != torch.float32:
                out[part] = x
        return out.permute(0, 3, 1, 2)

    def __call__(self, inputs: Sequence[Raw], names: Sequence[str] | None = None) -> Tensor:
        """Raw images to inputs (B, 3, h, w); `names` say what to call them in an error."""
        if not len(inputs):
            return torch.empty((0, 3, *self.size))
        names = names if names is not None else [describe(x, i) for i, x in enumerate(inputs)]
        pixels = [self.pixels(raw, name) for raw, name in zip(inputs, names, strict=True)]
        return self.normalise(torch.from_numpy(np.stack(pixels)))

    def to_dict(self) -> dict[str, Any]:
        """Hugging Face's `preprocessor_config.json`, which `transformers` opens."""
        from layerwise.kinds.image.config import to_config

        return to_config(self)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ImageProcessor":
        """From a `preprocessor_config.json`.

        Errors: OptionError for a key or value whose effect is not known here.
        """
        from layerwise.kinds.image.config import from_config

        return from_config(config)


def is_plain(pixels: np.ndarray) -> bool:
    """Whether images (n, h, w[, c]) are grey or RGB: what needs no conversion."""
    shaped = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))
    return shaped and pixels.dtype == np.uint8


def describe(raw: Raw, row: int | None = None) -> str:
    """A name for a raw image that has none: its path, or the row it stands in."""
    if isinstance(raw, str | os.PathLike):
        return str(raw)
    return "an image" if row is None else f"image {row}"


def centre_crop(pixels: np.ndarray, size: tuple[int, int], down: bool = False) -> np.ndarray:
    """(h, w, 3) of this size, black where there is no image; `down` as in `ImageProcessor`."""
    h, w = (max(side, want) for side, want in zip(pixels.shape[:2], size, strict=True))
    if (h, w) != pixels.shape[:2]:
        spare = [side - have for side, have in zip((h, w), pixels.shape[:2], strict=True)]
        pixels = np.pad(pixels, [(s // 2, s - s // 2) for s in spare] + [(0, 0)])
    half = math.floor if down else round  # which takes halves to the even number
    top, left = half((h - size[0]) / 2), half((w - size[1]) / 2)
    return pixels[top : top + size[0], left : left + size[1]]


def chunks(n: int, row_bytes: int) -> Iterator[slice]:
    """Slices over n rows of about CHUNK_BYTES each."""
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    return (slice(i, i + step) for i in range(0, n, step))
