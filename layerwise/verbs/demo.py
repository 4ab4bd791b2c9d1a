"""`demo`: the whole way on scikit-learn's scanned digits."""

import importlib.util
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from layerwise.console import Console
from layerwise.fitting.run import fit

DEMO_STEPS = 150


def demo(console: Console | None = None, output: str = "") -> dict[str, Any]:
    """The whole way on scikit-learn's 1,797 scanned digits: the same path that user data takes."""
    console = console or Console()
    images, targets = bundled_digits()
    folder = pathlib.Path(output).parent if output else pathlib.Path("runs")
    folder.mkdir(parents=True, exist_ok=True)
    path, one = folder / "digits.npz", folder / "scan.png"
    np.savez(path, images=images, labels=targets)
    Image.fromarray(images[42]).save(one)
    options = {"output": output} if output else {}
    result = fit(path, console=console, base="none", steps=DEMO_STEPS, threads=1, **options)
    console.head("one prediction")
    said = result.model.predict(one)[0]
    sure = f"with probability {said.probability:.3f}"
    console.say(f"  {one}: {said.label} {sure}; it is a {targets[42]}")
    console.head("next")
    for line in result.details["next"]:
        console.say(f"  {line['what']}\n    {line['command']}")
    console.say("  the same, on your own data\n    layerwise fit YOUR_FOLDER")
    return result.to_dict()


def bundled_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's scanned digits, uint8 (1797, 8, 8), and what they are (1797,).

    Read where they lie: importing scikit-learn takes longer than the demo's first steps.
    """
    found = importlib.util.find_spec("sklearn")
    assert found is not None, "scikit-learn is a dependency"
    assert found.submodule_search_locations is not None
    file = pathlib.Path(found.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")  # 64 shades of 0 to 16, then the digit
    images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
