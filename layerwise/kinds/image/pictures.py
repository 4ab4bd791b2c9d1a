"""Small pictures for a page, as data URIs."""

import base64
import io

import numpy as np
from PIL import Image

THUMBNAIL = 96


def data_uri(pixels: np.ndarray, side: int = THUMBNAIL) -> str:
    """uint8 (h, w, 3) as a small JPEG (or PNG, for tiny images) in a data URI."""
    image = Image.fromarray(pixels)
    small = max(image.size) <= 64
    if small:
        scale = max(1, side // max(image.size))
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    else:
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", quality=80)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def overlay(pixels: np.ndarray, heat: np.ndarray, side: int = THUMBNAIL) -> str:
    """The image, grey, with warm colour where `heat` (h, w) from 0 to 1 is high."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"), np.float32)
    size = (pixels.shape[1], pixels.shape[0])
    scaled = Image.fromarray((heat * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    share = np.asarray(scaled, np.float32)[:, :, None] / 255
    warm = np.array([235.0, 92.0, 40.0], np.float32)
    mixed = grey * (0.85 - 0.7 * share) + warm * 0.85 * share + 20
    return data_uri(np.clip(mixed, 0, 255).astype(np.uint8), side)
