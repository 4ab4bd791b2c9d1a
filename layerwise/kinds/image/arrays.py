"""Arrays of numbers as images: pixels of any layout and range to uint8 (n, h, w) or (n, h, w, c).

Colours-first is turned round, fractions from 0 to 1 are multiplied by 255.
Legend: n images of h x w pixels, c channels.
"""

import math

import numpy as np

from layerwise.data.examples import Finding
from layerwise.errors import DataError

CHANNELS = (1, 3, 4)


def pixels_of(x: np.ndarray, source: str, findings: list[Finding]) -> np.ndarray:
    """uint8 (n, h, w) or (n, h, w, c)."""
    x = _shaped(x, source)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "biuf":
        raise DataError(f"{source}: pixels should be numbers; they are of type {x.dtype}")
    x = x * 255 if x.dtype == bool else x
    odd = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
    if len(odd):
        raise DataError(f"{source}: image {odd[0]} has pixels that are NaN or infinite; fix them")
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if x.dtype.kind == "f" and low >= -1 and high <= 1:
        rule = "from -1..1 to 0..255" if low < 0 else "from 0..1 to 0..255"
        scaled = (x + 1) * 127.5 if low < 0 else x * 255
    elif low >= 0 and high <= 255:
        rule, scaled = "rounded to 0..255", x
    elif x.dtype == np.uint16:
        rule, scaled = "from 16 bits to 8", x / 257
    else:
        raise DataError(
            f"{source}: pixels should lie in 0..255, 0..1 or -1..1; they lie in {low:g}..{high:g}. "
            "Undo the standardisation, or save rows (n, features) to learn from them as a table"
        )
    findings.append(Finding("pixels", "note", f"pixels of type {x.dtype} were brought {rule}"))
    return np.rint(scaled).astype(np.uint8)


def _shaped(x: np.ndarray, source: str) -> np.ndarray:
    """(n, h, w) or (n, h, w, c), from colours first or last or, where asked, squares laid flat."""
    side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    if side and side**2 == x.shape[1]:
        x = x.reshape(-1, side, side)
    if x.ndim == 4 and x.shape[-1] not in CHANNELS and x.shape[1] in CHANNELS:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in CHANNELS):
        return x
    raise DataError(
        f"{source}: expected images (n, h, w), (n, h, w, c) or (n, c, h, w) with 1, 3 or 4 "
        f"channels, or rows (n, features); the shape is {x.shape}"
    )
