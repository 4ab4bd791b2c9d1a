"""What the report shows of a network's inside: how each layer learned and what it looks for."""

import time
from typing import Any

import torch

from layerwise import kinds, runtime
from layerwise.data.examples import Examples
from layerwise.data.loader import in_order
from layerwise.errors import DataError
from layerwise.fitting.job import Contender, Job, Rows, some_rows
from layerwise.inspection.attribution import heat, smooth_grad, top_examples
from layerwise.inspection.depth import depth_report
from layerwise.inspection.reading import Reading, reading
from layerwise.inspection.texts import legible
from layerwise.kinds.image.pictures import data_uri, overlay
from layerwise.model.model import Model
from layerwise.models.network import reads_tokens
from layerwise.tasks.feed import Feed, batch_of

ENOUGH = 300  # test rows that are probed, though there be more to validate on
PROBED, FEW_PROBED = 1500, 200  # rows that the depth report looks at, at most and at least
TIMED, PASSES = 32, 5  # rows by which its time is judged; times that it sees each row, about
TOKENS, WINDOWS = 4096, 16  # of running text, and its least number of windows
LOOKED_THROUGH = 600  # rows among which a unit's favourites are sought
SHOWN = 6  # rows whose saliency is shown
UNITS, FAVOURITES = 2, 4  # per layer


def look_inside(
    job: Job, rows: Rows, model: Model, winner: Contender, base: Model | None = None
) -> dict[str, Any]:
    """The layers as the report shows them, pictures for images, and how texts are read.

    base: what the winner was fine-tuned from.
    """
    history = winner.outcome.history if winner.outcome else []
    out: dict[str, Any] = {"layers": layer_rows(model, history)}
    if not job.settings.depth:
        return out
    if not reads_tokens(model.network):
        out |= depth_of(job, rows, model, out["layers"])
        pictured = kinds.of(rows.test).raw_picture(rows.test, 0, model.processor) is not None
        if pictured and job.task.named_by_classes and len(model.processors) == 1:
            runtime.give_back()
            show_favourites(job, rows, model, out["layers"])
            out["saliency"] = saliency(job, rows, model)
        return out
    gradients = {r["name"]: r["grad_norm"] for r in out["layers"] if r.get("grad_norm")}
    try:
        most = rows_probed(job, rows.test, model)
        found = read_text(model, rows.test, base, job.settings.seed, most, gradients=gradients)
    except DataError as e:  # too few held-out rows to probe with
        return out | {"depth": {"sentences": [str(e)]}}
    out["reading"] = found.to_dict()
    out["depth"] = {"sentences": found.sentences()}
    fill_floors(out["layers"], out["reading"])
    return out


def read_text(
    model: Model, held: Examples, base: Model | None, seed: int, probed: int = PROBED, **more: Any
) -> Reading:
    """How a model reads texts that it was not trained on. more: for `inspection.reading`."""
    task = model.answers()
    held = task.task_rows(held, model.processors)
    most = max(WINDOWS, TOKENS // model.processor.max_seq_len)
    some = some_rows(held, most if task.every_position else probed)
    feed, own = Feed(task, some, model.processors), None if base is None else base.network
    batches = [legible(batch, task.token_targets) for batch in in_order(feed)]
    asked = task.every_position, task.labels, task.probe is not None
    return reading(model.network, batches, *asked, model.tokenizer.stream, own, seed, **more)


def rows_probed(job: Job, held: Examples, model: Model) -> int:
    """How many rows the depth report looks at: what is left of the budget pays for."""
    if job.seconds_left == float("inf"):
        return PROBED
    feed = Feed(job.task, some_rows(held, TIMED), model.processors, cached=False)
    spent = []
    with runtime.evaluating(model.network):
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            for batch in in_order(feed):
                job.task.predict(model.network, batch.to(job.machine.device))
            spent.append(time.perf_counter() - started)
    paid = max(0.0, job.seconds_left) / PASSES / spent[-1] * feed.n
    return min(PROBED, max(FEW_PROBED, int(paid)))


def fill_floors(layers: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """The figures of a reading beside the layers they are of."""
    rows = {row["name"]: row for row in layers}
    first = layers[0]["name"]
    for floor in found["lens"]:
        name = first if floor["name"] == "embeddings" else floor["name"]
        rows[name] |= {"probe": floor["right"], "bits": floor["bits"]}
    for row in [*(found["depth"] or {"layers": []})["layers"], *found["changed"]]:
        rows.get(row["name"], {}).update({k: v for k, v in row.items() if k != "name"})


def layer_rows(model: Model, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = history[-1]["layers"] if history else {}
    stack = model.network.layers().items()
    sizes = {name: sum(p.numel() for p in layer.parameters()) for name, layer in stack}
    return [{"name": name, "params": n, **last.get(name, {})} for name, n in sizes.items()]


def depth_of(job: Job, rows: Rows, model: Model, layers: list[dict]) -> dict[str, Any]:
    """Probe accuracy, rank and similarity by layer, on rows that were not trained on."""
    more = len(rows.test) < ENOUGH and len(rows.val) > len(rows.test)
    held = rows.val if more else rows.test
    gradients = {row["name"]: row["grad_norm"] for row in layers if row.get("grad_norm")}
    some = some_rows(held, rows_probed(job, held, model))
    batches = in_order(Feed(job.task, some, model.processors))
    try:
        seed = job.settings.seed
        found = depth_report(model.network, batches, model.labels, seed=seed, gradients=gradients)
    except DataError as e:  # too few held-out rows to probe with
        return {"depth": {"sentences": [str(e)]}}
    report = found.to_dict()
    by_name = {row["name"]: row for row in report["layers"]}
    for row in layers:
        row |= {k: v for k, v in by_name.get(row["name"], {}).items() if k != "name"}
    return {"depth": {"sentences": found.sentences(), "chance": report["chance"]}}


def show_favourites(job: Job, rows: Rows, model: Model, layers: list[dict]) -> None:
    """Beside each layer: the held-out rows that excite its most selective units."""
    sought = some_rows(rows.test, LOOKED_THROUGH)
    batches = in_order(Feed(job.task, sought, model.processors))
    found = top_examples(model.network, batches, UNITS, FAVOURITES)
    show = kinds.of(sought).show
    for row in layers:
        units = {u.index: u.rows for u in found.get(row["name"], [])}
        shown = {
            i: [{"image": show(sought, r, 48).image} for r in rows] for i, rows in units.items()
        }
        row["units"] = [{"index": i, "images": images} for i, images in shown.items()]


def saliency(job: Job, rows: Rows, model: Model) -> list[dict[str, Any]]:
    """Where in a row the answer hangs on, for a few held-out ones that can be shown as pictures."""
    shown = some_rows(rows.test, SHOWN)
    x = batch_of(job.task, shown, model.processors).main(model.network.READS)  # (B, c, h, w)
    with torch.no_grad():
        said = model.network.eval()(x).argmax(1)
    maps = heat(smooth_grad(model.network, x, said)).numpy()  # (B, h, w)
    out, kind = [], kinds.of(shown)
    for i, name in enumerate(shown.names):
        pixels = kind.raw_picture(shown, i, model.processor)
        assert pixels is not None, "only such rows are shown"
        assert shown.targets is not None, "classes are learned"
        truth, predicted = (model.labels[int(x[i])] for x in (shown.targets, said))
        pictures = {"image": data_uri(pixels), "overlay": overlay(pixels, maps[i])}
        out.append({"name": str(name), "truth": truth, "predicted": predicted, **pictures})
    return out
