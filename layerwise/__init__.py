"""layerwise: deep learning, whole. From a folder of raw data to a trained, explained model.

The verbs, in Python as on the command line:
    layerwise.fit(data, ...)        train the best model the data and the budget allow
    layerwise.load(name_or_path)    a trained or published model, with `.predict` and `.save`
    layerwise.predict(model, data)  labels and probabilities for new rows
    layerwise.evaluate(model, data) scores with intervals; two models: which is better
    layerwise.embed(model, texts)   vectors; layerwise.Index keeps them, layerwise.search finds
    layerwise.plan(model, ...)      parameters, FLOPs, memory, time and money, before paying
    layerwise.inspect(model, data)  what each layer learned
    layerwise.audit(data)           what is wrong with the data
    layerwise.export(model, ...)    a model as llama.cpp or transformers read it
    layerwise.selftest(run)         whether the shortcuts of training changed what it learned

Importing this does no work: PyTorch is loaded when a verb is called.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {  # what lies where
    "fitting.run": ("fit",),
    "model.saved": ("load",),
    "model.evaluation": ("predict", "evaluate", "compare"),
    "verbs.embed": ("embed", "search", "Embedder", "Index"),
    **{f"verbs.{v}": (v,) for v in ("plan", "inspect", "audit", "demo", "export", "selftest")},
}
_VERBS = {name: f"layerwise.{home}" for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'layerwise' has no attribute '{name}'")
    return getattr(importlib.import_module(_VERBS[name]), name)


def __dir__() -> list[str]:
    return sorted([*_VERBS, "__version__"])
