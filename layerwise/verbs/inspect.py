"""`inspect`: what each layer of a trained model learned."""

from layerwise import runtime
from layerwise.data.loader import in_order
from layerwise.fitting.inside import read_text
from layerwise.fitting.job import some_rows
from layerwise.inspection.depth import DepthReport, depth_report
from layerwise.inspection.reading import Reading
from layerwise.model.evaluation import Known, Named, as_model, rows_to_score
from layerwise.models.network import reads_tokens
from layerwise.tasks.feed import Feed

Report = DepthReport | Reading


def inspect(model: Named, data: Known, rows: int = 1500, seed: int = 0, base: Named = "") -> Report:
    """What each layer of a trained model learned, measured on rows it was not trained on.

    base: of a text model, what it was fine-tuned from, to see which layers that changed.
    Returns a DepthReport (probe accuracy, effective rank and similarity by layer) or, of texts, a
    Reading; both have `sentences()`, `table()` and `to_dict()`.
    """
    runtime.start()
    loaded = as_model(model)
    held, _ = rows_to_score(loaded, data, "", "unseen")
    some = some_rows(held, rows)
    if reads_tokens(loaded.network):
        return read_text(loaded, some, as_model(base) if base else None, seed)
    batches = in_order(Feed(loaded.answers(), some, loaded.processors))
    return depth_report(loaded.network, batches, loaded.labels, seed=seed)
