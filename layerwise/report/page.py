"""The page of a run: one self-contained HTML file, no network, light and dark.

`write_page` takes the document that `fitting.finish` gathered; the template shows it.
"""

import math
import pathlib
from typing import Any

from jinja2.sandbox import SandboxedEnvironment

from layerwise.console import duration
from layerwise.report import charts
from layerwise.storage import replacing

HERE = pathlib.Path(__file__).parent
Sizes = list[dict[str, Any]]
SHOWN_CLASSES = 60  # a confusion matrix larger than this is not readable


def write_page(path: pathlib.Path, page: dict[str, Any]) -> pathlib.Path:
    """Render the page to `path`, whole or not at all."""
    html = render(page)
    with replacing(path) as partial:
        partial.write_text(html, "utf-8")
    return path


def render(page: dict[str, Any]) -> str:
    environment = SandboxedEnvironment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": duration, "count": count, "size": size}
    template = environment.from_string((HERE / "page.html").read_text("utf-8"))
    title = f"{page['model']['variant']} on {pathlib.Path(page['data']).name}"
    drawn = {"css": (HERE / "page.css").read_text("utf-8"), "charts": pictures(page)}
    return template.render(page=page, floors=floors(page), title=title, **drawn)


def count(value: float | None) -> str:
    """1234567 as "1.23 million"."""
    if value is None:
        return "-"
    for limit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= limit:
            return f"{value / limit:.3g} {name}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def pictures(page: dict[str, Any]) -> dict[str, str]:
    """Every chart that the page's numbers allow."""
    metrics, score = page["metrics"], page["score"]
    loss = [(m["step"], m["loss"]) for m in metrics if isinstance(m.get("loss"), float)]
    key = f"val_{score['name']}"
    val = [(m["step"], m[key]) for m in metrics if isinstance(m.get(key), int | float)]
    out = {"loss": charts.lines({"loss": charts.thin(loss)}, "step", "training loss")}
    out["val"] = charts.lines({key: val}, "step", f"validation {score['name']}")
    known, table = page.get("calibration"), page.get("confusion")
    heads, outlook = page.get("reading", {}).get("heads"), page.get("forecast")
    small = table is not None and len(table["labels"]) <= SHOWN_CLASSES
    out["ladder"] = charts.interval_bars(page["ladder"]) if page["ladder"] else ""
    out["reliability"] = charts.reliability(known["bins"]) if known else ""
    out["confusion"] = charts.confusion(**table) if table and small else ""
    out["heads"] = charts.heads(heads) if heads else ""
    out["forecast"] = forecast(**outlook) if outlook else ""
    return out | {"scatter": charts.scatter(page.get("scatter", []))}


def forecast(curve: Sizes, params: float, came: float, unit: str, **rest: object) -> str:
    """The expected loss of every size for the same time with its interval, and what came."""
    names = {"expected": "value", "lowest": "low", "highest": "high"}
    drawn = {n: [(math.log10(c["params"]), c[k]) for c in curve] for n, k in names.items()}
    drawn = {"came": [(math.log10(params), came)]} | drawn
    return charts.lines(drawn, "parameters, as a power of ten", unit.replace("_", " "))


def floors(page: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers from the roof (labels) to the ground (pixels), their figures scaled for bars."""
    layers = page.get("layers", [])
    flows = [row["grad_norm"] for row in layers if row.get("grad_norm")]
    top = max(flows, default=1.0)
    out = []
    for i, row in enumerate(layers):
        flow = row.get("grad_norm")
        share = 0.0
        if flow and flow > 0:  # six decades wide: a vanishing gradient is seen to vanish
            share = max(0.0, 1 + math.log10(flow / top) / 6)
        out.append(row | {"number": i + 1, "flow_share": share, "probe": row.get("probe")})
    return out[::-1]
