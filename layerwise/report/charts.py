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


def tag(name: str, inside: str = "", /, **attributes: str | float) -> str:
    """An element; in the names of attributes "_" stands for "-". inside: as it is, so escaped."""
    said = "".join(f' {k.strip("_").replace("_", "-")}="{v}"' for k, v in attributes.items())
    return f"<{name}{said}>{inside}</{name}>"


def text(x: float, y: float, inside: str, **attributes: str | float) -> str:
    return tag("text", inside, x=f"{x:.4g}", y=f"{y:.4g}", **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: str | float) -> str:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return tag("line", **{k: f"{v:.1f}" for k, v in ends.items()}, **attributes)


def dots(
    xs: Sequence[float], ys: Sequence[float], r: float, inside: str = "", **attributes: str | float
) -> str:
    both = zip(xs, ys, strict=True)
    return "".join(
        tag("circle", inside, cx=f"{a:.1f}", cy=f"{b:.1f}", r=f"{r:.3g}", **attributes)
        for a, b in both
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
        out.append(line(LEFT, at, W - RIGHT, at, class_="grid"))
        out.append(text(LEFT - 6, at + 4, number(v), text_anchor="end"))
    for v in ticks(*x):
        at = scale([v], *x, LEFT, W - RIGHT)[0]
        out.append(text(at, H - 26, number(v), text_anchor="middle"))
    out.append(text(W - RIGHT, H - 8, x_name, class_="name", text_anchor="end"))
    out.append(text(LEFT, TOP - 14, escape(y_name), class_="name"))
    return "".join(out)


def lines(series: dict[str, list[tuple[float, float]]], x_name: str, y_name: str) -> str:
    """One line per series of (x, y) points; the legend stands above them."""
    points = [p for s in series.values() for p in s if math.isfinite(p[1])]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x, y = (min(xs), max(xs)), (min(ys), max(ys) + 0.04 * (max(ys) - min(ys) or 1))
    body = axes(x, y, x_name, y_name)
    for i, s in enumerate(series.values()):
        s = [p for p in s if math.isfinite(p[1])]
        px = scale([p[0] for p in s], *x, LEFT, W - RIGHT)
        py = scale([p[1] for p in s], *y, H - BOTTOM, TOP)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        colour = COLOURS[i % 4]
        body += tag("polyline", fill="none", stroke=colour, stroke_width=2, points=path)
        body += dots(px, py, 3, fill=colour) if len(s) < 30 else ""
    if len(series) > 1:
        styles = [f"fill:{COLOURS[i % 4]}" for i in range(len(series))]
        both = zip(series, styles, strict=True)
        names = "".join(tag("tspan", escape(name), dx=14, style=style) for name, style in both)
        body += text(W - RIGHT - 14, TOP - 14, names, text_anchor="end")
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
    body = line(x(0), y(0), x(1), y(1), class_="diagonal")
    for v in (0, 0.5, 1):
        body += text(x(v), size - 14, f"{v:g}", text_anchor="middle")
        body += text(pad - 6, y(v) + 4, f"{v:g}", text_anchor="end")
    total = sum(b["count"] for b in bins) or 1
    for b in bins:
        if b["count"]:
            r, said = 2 + 12 * math.sqrt(b["count"] / total), tag("title", f"{b['count']:.0f} rows")
            at = [x(b["confidence"])], [y(b["accuracy"])]
            body += dots(*at, r, said, fill="var(--c1)", fill_opacity=0.7)
    body += text(size - pad, size - 2, "confidence", class_="name", text_anchor="end")
    body += text(pad, pad - 12, "accuracy", class_="name")
    return svg(body, size, size, "accuracy against confidence", narrow=True)


def scatter(points: list[list[float]]) -> str:
    """Predicted against true numbers, with the diagonal."""
    if not points:
        return ""
    both = [v for p in points for v in p]
    ends = (min(both), max(both))
    body = axes(ends, ends, "true", "predicted")
    body += line(LEFT, H - BOTTOM, W - RIGHT, TOP, class_="diagonal")
    px = scale([p[0] for p in points], *ends, LEFT, W - RIGHT)
    py = scale([p[1] for p in points], *ends, H - BOTTOM, TOP)
    body += dots(px, py, 2, fill="var(--c1)", fill_opacity=0.35)
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
        body += line(at, 4, at, height - 26, class_="grid")
        body += text(at, height - 10, number(v), text_anchor="middle")
    for i, r in enumerate(rows):
        y = 20 + 30 * i
        a, m, b = scale([r["low"], r["score"], r["high"]], *ends, 90, W - 70)
        colour = "var(--c1)" if r["chosen"] else "var(--soft)"
        stroke = {"stroke_width": 6, "stroke_linecap": "round", "stroke_opacity": 0.45}
        body += text(82, y + 4, escape(r["name"]), text_anchor="end")
        body += line(a, y, b, y, stroke=colour, **stroke) + dots([m], [y], 6, fill=colour)
        body += text(W - 62, y + 4, f"{r['score']:.4f}")
    return svg(body, W, height, "ladder: score and interval of every rung")


def square(x: float, y: float, side: float, said: str, **attributes: str | float) -> str:
    """said: shown where the mouse rests on it."""
    return tag("rect", tag("title", said), x=x, y=y, width=side, height=side, **attributes)


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
        body += text(left - 6, y + cell // 2 + 4, name, text_anchor="end")
        for j, count in enumerate(row):
            colour = "var(--c1)" if i == j else "var(--bad)"
            opacity = 0.08 + 0.92 * count / total if count else 0.03
            x = left + j * cell
            said = f"{name} called {escape(labels[j])}: {count}"
            body += square(x, y, cell - 2, said, rx=3, fill=colour, fill_opacity=f"{opacity:.3f}")
            if count and cell >= 24:
                at, strong = (x + cell // 2 - 1, y + cell // 2 + 4), count / total > 0.5
                body += text(*at, str(count), class_="on" * strong, text_anchor="middle")
    for j in range(n):
        move = f"translate({left + j * cell + cell / 2:.0f},{top + n * cell + 10:.0f}) rotate(-45)"
        body += text(0, 0, escape(labels[j][:16]), transform=move, text_anchor="end")
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
        body += text(left - 8, y + 15, escape(name), text_anchor="end")
        for j, head in enumerate(row):
            kind = max(kinds, key=head.__getitem__)
            spread = head[kind] < 0.3
            colour = "var(--c1)" if spread else kinds[kind]
            shade = 0.15 + 0.85 * (1 - head["entropy"] if spread else head[kind])
            looks = ", ".join(f"{k} {v:.2f}" for k, v in head.items())
            at, said = (left + cell * j, y), f"{escape(name)} head {j}: {looks}"
            body += square(*at, cell - 3, said, rx=4, fill=colour, fill_opacity=f"{shade:.2f}")
    x, y = left, 4 + cell * len(layers) + 14
    for what, colour in {**kinds, "spread out": "var(--c1)"}.items():
        body += dots([x + 5], [y - 4], 5, fill=colour) + text(x + 14, y, what)
        x += 26 + 7 * len(what)
    return svg(body, width, y + 8, "where each attention head looks", narrow=True)
