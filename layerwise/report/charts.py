"""Charts as SVG text: pure functions of numbers, coloured by the page's own CSS variables."""

import math
from collections.abc import Sequence
from html import escape

W, H, LEFT, BOTTOM, TOP, RIGHT = 640, 260, 52, 44, 30, 16
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")


def svg(body: str, width: int = W, height: int = H, label: str = "", narrow: bool = False) -> str:
    """The picture; `narrow` keeps it from being stretched, so that its text stays as large."""
    limit = f' style="max-width:{round(1.2 * width)}px;margin:auto"' * narrow
    return (
        f'<svg viewBox="0 0 {width} {height}"{limit} role="img" aria-label="{escape(label)}" '
        f'preserveAspectRatio="xMidYMid meet">{body}</svg>'
    )


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `n` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / n
    unit = 10 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    first = math.ceil(low / step - 1e-9) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number short enough for an axis."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.4g}"


def scale(
    values: Sequence[float], low: float, high: float, start: float, end: float
) -> list[float]:
    span = (high - low) or 1.0
    return [start + (v - low) / span * (end - start) for v in values]


def axes(x: tuple[float, float], y: tuple[float, float], x_name: str, y_name: str) -> str:
    """Grid lines with numbers, and the names of both axes."""
    out = []
    for v in ticks(*y):
        at = scale([v], *y, H - BOTTOM, TOP)[0]
        out.append(f'<line class="grid" x1="{LEFT}" x2="{W - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(v)}</text>')
    for v in ticks(*x):
        at = scale([v], *x, LEFT, W - RIGHT)[0]
        out.append(f'<text x="{at:.1f}" y="{H - 26}" text-anchor="middle">{number(v)}</text>')
    out.append(f'<text class="name" x="{W - RIGHT}" y="{H - 8}" text-anchor="end">{x_name}</text>')
    out.append(f'<text class="name" x="{LEFT}" y="{TOP - 14}">{escape(y_name)}</text>')
    return "".join(out)


def lines(
    series: dict[str, list[tuple[float, float]]],
    x_name: str,
    y_name: str,
    y_from: float | None = None,
) -> str:
    """One line per series of (x, y) points; the legend stands above them."""
    points = [p for s in series.values() for p in s if math.isfinite(p[1])]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low = min(ys) if y_from is None else y_from
    x, y = (min(xs), max(xs)), (low, max(ys) + 0.04 * (max(ys) - low or 1))
    body = axes(x, y, x_name, y_name)
    for i, s in enumerate(series.values()):
        s = [p for p in s if math.isfinite(p[1])]
        px = scale([p[0] for p in s], *x, LEFT, W - RIGHT)
        py = scale([p[1] for p in s], *y, H - BOTTOM, TOP)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        colour = COLOURS[i % 4]
        body += f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
        if len(s) < 30:
            body += "".join(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>'
                for a, b in zip(px, py, strict=True)
            )
    if len(series) > 1:
        names = "".join(
            f'<tspan dx="14" style="fill:{COLOURS[i % 4]}">{escape(name)}</tspan>'
            for i, name in enumerate(series)
        )
        body += f'<text x="{W - RIGHT - 14}" y="{TOP - 14}" text-anchor="end">{names}</text>'
    return svg(body, label=f"{y_name} over {x_name}")


def thin(points: list[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(p[1] for p in g) / len(g)) for g in groups]


def reliability(bins: list[dict[str, float]]) -> str:
    """Accuracy against confidence; the diagonal is perfect, the area of a dot its rows."""
    size, pad = 260, 34
    x = lambda v: pad + v * (size - 2 * pad)  # noqa: E731
    y = lambda v: size - pad - v * (size - 2 * pad)  # noqa: E731
    body = f'<line class="diagonal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>'
    for v in (0, 0.5, 1):
        body += f'<text x="{x(v)}" y="{size - 14}" text-anchor="middle">{v:g}</text>'
        body += f'<text x="{pad - 6}" y="{y(v) + 4}" text-anchor="end">{v:g}</text>'
    total = sum(b["count"] for b in bins) or 1
    for b in bins:
        if b["count"]:
            r = 2 + 12 * math.sqrt(b["count"] / total)
            body += (
                f'<circle cx="{x(b["confidence"]):.1f}" cy="{y(b["accuracy"]):.1f}" r="{r:.1f}" '
                f'fill="var(--c1)" fill-opacity=".7"><title>{b["count"]:.0f} rows</title></circle>'
            )
    body += (
        f'<text class="name" x="{size - pad}" y="{size - 2}" text-anchor="end">confidence</text>'
    )
    body += f'<text class="name" x="{pad}" y="{pad - 12}">accuracy</text>'
    return svg(body, size, size, "accuracy against confidence", narrow=True)


def scatter(points: list[list[float]]) -> str:
    """Predicted against true numbers, with the diagonal."""
    if not points:
        return ""
    both = [v for p in points for v in p]
    ends = (min(both), max(both))
    body = axes(ends, ends, "true", "predicted")
    line = scale(list(ends), *ends, LEFT, W - RIGHT), scale(list(ends), *ends, H - BOTTOM, TOP)
    body += (
        f'<line class="diagonal" x1="{line[0][0]}" y1="{line[1][0]}" x2="{line[0][1]}" '
        f'y2="{line[1][1]}"/>'
    )
    px = scale([p[0] for p in points], *ends, LEFT, W - RIGHT)
    py = scale([p[1] for p in points], *ends, H - BOTTOM, TOP)
    body += "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="var(--c1)" fill-opacity=".35"/>'
        for a, b in zip(px, py, strict=True)
    )
    return svg(body, label="predicted against true")


def interval_bars(rows: list[dict]) -> str:
    """One line per rung: its score as a dot, its interval as a bar."""
    height = 30 * len(rows) + 34
    low, high = min(r["low"] for r in rows), max(r["high"] for r in rows)
    pad = 0.08 * (high - low or 1)
    ends = (low - pad, high + pad)
    body = ""
    for v in ticks(*ends):
        at = scale([v], *ends, 90, W - 70)[0]
        body += f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height - 26}"/>'
        body += f'<text x="{at:.1f}" y="{height - 10}" text-anchor="middle">{number(v)}</text>'
    for i, r in enumerate(rows):
        y = 20 + 30 * i
        a, m, b = scale([r["low"], r["score"], r["high"]], *ends, 90, W - 70)
        colour = "var(--c1)" if r["chosen"] else "var(--soft)"
        body += f'<text x="82" y="{y + 4}" text-anchor="end">{escape(r["name"])}</text>'
        body += (
            f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="6" stroke-linecap="round" stroke-opacity=".45"/>'
        )
        body += f'<circle cx="{m:.1f}" cy="{y}" r="6" fill="{colour}"/>'
        body += f'<text x="{W - 62}" y="{y + 4}">{r["score"]:.4f}</text>'
    return svg(body, W, height, "ladder: score and interval of every rung")


def confusion(labels: list[str], matrix: list[list[int]]) -> str:
    """Rows are the truth, columns what was said; the shade is the share of the row."""
    n = len(labels)
    cell = max(14, min(44, 520 // n))
    left, top = 110, 14
    width, height = left + cell * n + 10, top + cell * n + 96
    body = ""
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        y = top + i * cell
        name = escape(labels[i][:16])
        body += f'<text x="{left - 6}" y="{y + cell / 2 + 4:.0f}" text-anchor="end">{name}</text>'
        for j, count in enumerate(row):
            colour = "var(--c1)" if i == j else "var(--bad)"
            opacity = 0.08 + 0.92 * count / total if count else 0.03
            x = left + j * cell
            said = f"{name} called {escape(labels[j])}: {count}"
            body += (
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3" '
                f'fill="{colour}" fill-opacity="{opacity:.3f}"><title>{said}</title></rect>'
            )
            if count and cell >= 24:
                strong = ' class="on"' if count / total > 0.5 else ""
                body += (
                    f'<text{strong} x="{x + cell / 2 - 1:.0f}" y="{y + cell / 2 + 4:.0f}" '
                    f'text-anchor="middle">{count}</text>'
                )
    for j in range(n):
        x, y = left + j * cell + cell / 2, top + n * cell + 10
        body += (
            f'<text transform="translate({x:.0f},{y:.0f}) rotate(-45)" text-anchor="end">'
            f"{escape(labels[j][:16])}</text>"
        )
    return svg(body, width, height, "confusion matrix", narrow=True)


def heads(table: dict[str, list[dict[str, float]]]) -> str:
    """Layers from top to bottom, a square per head: its colour says where it mostly looks."""
    kinds = {"first": "var(--c4)", "itself": "var(--c3)", "previous": "var(--c2)"}
    layers = list(table.items())[::-1]
    cell, left = 24, 96
    width = left + max(300, cell * max(len(row) for _, row in layers))
    body = ""
    for i, (name, row) in enumerate(layers):
        y = 4 + cell * i
        body += f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
        for j, head in enumerate(row):
            kind = max(kinds, key=head.__getitem__)
            spread = head[kind] < 0.3
            colour = "var(--c1)" if spread else kinds[kind]
            shade = 0.15 + 0.85 * (1 - head["entropy"] if spread else head[kind])
            said = ", ".join(f"{k} {v:.2f}" for k, v in head.items())
            body += (
                f'<rect x="{left + cell * j}" y="{y}" width="{cell - 3}" height="{cell - 3}" '
                f'rx="4" fill="{colour}" fill-opacity="{shade:.2f}">'
                f"<title>{escape(name)} head {j}: {said}</title></rect>"
            )
    x, y = left, 4 + cell * len(layers) + 14
    for what, colour in {**kinds, "spread out": "var(--c1)"}.items():
        body += f'<circle cx="{x + 5}" cy="{y - 4}" r="5" fill="{colour}"/>'
        body += f'<text x="{x + 14}" y="{y}">{what}</text>'
        x += 26 + 7 * len(what)
    return svg(body, width, y + 8, "where each attention head looks", narrow=True)
