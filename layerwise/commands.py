"""Each verb as the command line prints it: calls the Python verb, says the result, returns JSON.

A function here takes the console and the verb's arguments, and returns what `--json` prints.
"""

import json
import pathlib
import shutil
import time
from typing import Any

from layerwise.console import Console
from layerwise.errors import OptionError

Said = dict[str, Any]


def fit(console: Console, data: str = "", resume: str = "", **options: object) -> Said:
    from layerwise.fitting.run import fit

    return fit(data, resume=resume, console=console, **options).to_dict()


def demo(console: Console, output: str = "") -> Said:
    from layerwise.verbs.demo import demo

    return demo(console=console, output=output)


def predict(
    console: Console, model: str, data: list[str], top: int, confidence: float
) -> list[Said]:
    from layerwise.model.evaluation import as_model

    loaded = as_model(model)
    out = []
    for path in data:
        for p in loaded.predict(path, confidence=confidence, top=top):
            out.append(p.row())
            console.say(p.show())
    return out


def evaluate(console: Console, model: list[str], target: str, split: str) -> Said:
    from layerwise.model.evaluation import compare, evaluate

    if not 2 <= len(model) <= 3:
        raise OptionError("`layerwise evaluate MODEL DATA`, or `evaluate MODEL_A MODEL_B DATA`")
    *models, data = model
    if len(models) == 2:
        found = compare(models[0], models[1], data, target=target, split=split)
        console.say(found.sentence)
        return vars(found)
    e = evaluate(models[0], data, target=target, split=split)
    ends = f"95% interval {e.low:.4f} to {e.high:.4f}"
    console.say(f"{e.score_name} {e.score:.4f} on {e.n:,} rows ({e.split}), {ends}")
    for name, value in e.metrics.items():
        if name != e.score_name:
            console.say(f"  {name} {value:.4f}")
    if e.ece is not None:
        console.say(f"  calibration error {e.ece:.4f}")
    return e.to_dict()


def embed(console: Console, model: str, data: str, output: str, **options: Any) -> Said:
    from layerwise.verbs.embed import Embedder, Index, checked

    if output:
        checked(output)  # before the work
    said = lambda done, n: console.progress(f"  {done:,} of {n:,}")  # noqa: E731
    embedder, started = Embedder(model, progress=said), time.monotonic()
    index = Index.of(embedder, data, **options)
    (n, dim), seconds = index.vectors.shape, time.monotonic() - started
    console.say(f"{n:,} vectors of {dim} numbers in {seconds:.1f} s")
    if embedder.n_full:
        longest = embedder.longest
        console.say(
            f"  {embedder.n_full:,} texts fill or exceed the {longest} tokens that are read"
        )
    if output:
        index.model = str(pathlib.Path(model).resolve()) if pathlib.Path(model).exists() else model
        console.say(f"  kept in {index.save(output)}; layerwise search {output} QUERY")
    return {"rows": n, "dim": dim, "seconds": seconds, "output": output}


def search(console: Console, index: str, query: list[str], top: int, model: str) -> list[Said]:
    from layerwise.verbs.embed import search

    out = []
    for asked, hits in zip(query, search(index, query, top, model), strict=True):
        if len(query) > 1:
            console.head(asked)
        for hit in hits:
            console.say(f"{hit.score:.4f}  {hit.name}  {' '.join(hit.text.split())[:200]}")
        out.append({"query": asked, "hits": [vars(hit) for hit in hits]})
    return out


def plan(console: Console, model: str, **options: Any) -> Said:
    from layerwise.verbs.plan import plan

    found = plan(model, **options)
    for line in found.lines():
        console.say(line)
    return found.to_dict()


def inspect(console: Console, model: str, data: str, output: str, **options: Any) -> Said:
    from layerwise.verbs.inspect import inspect

    report = inspect(model, data, **options)
    for sentence in report.sentences():
        console.say(sentence)
    console.table(*report.table())
    if output:
        pathlib.Path(output).write_text(json.dumps(report.to_dict(), indent=1))
    return report.to_dict()


def audit(console: Console, data: str, **options: Any) -> Said:
    from layerwise.fitting.run import say_finding
    from layerwise.verbs.audit import audit

    examples, report = audit(data, **options)
    console.say(examples.understood)
    findings = [*examples.findings, *report.findings]
    for finding in findings:
        say_finding(finding, console)
        if finding.cure:
            console.say(f"    {finding.cure}")
    usable = f"{int(report.keep.sum())} of {len(examples)} rows usable"
    console.say(f"{len(findings)} findings; {usable}")
    return {"understood": examples.understood, "findings": [vars(f) for f in findings]}


def generate(console: Console, model: str, prompt: str, tokens: int) -> Said:
    from layerwise.model.evaluation import as_model

    text = as_model(model).generate(prompt, tokens)
    console.say(prompt + text)
    return {"prompt": prompt, "text": text}


def export(console: Console, model: str, **options: Any) -> Said:
    from layerwise.verbs.export import export

    done = export(model, **options)
    off = f"{done.difference:.2g} off the model's, and it agrees on {done.agreement:.1%} of tokens"
    written = f"{done.path}: {done.bytes / 1e6:.1f} MB as {done.form}"
    console.say(f"{written}; opened again, its outputs are {off}")
    return done.to_dict()


def selftest(console: Console, run: str, **options: Any) -> Said:
    from layerwise.verbs.selftest import selftest

    found = selftest(run, **options)
    console.say(f"gradients of {found.rows} training rows, in {found.arithmetic} and in float64")
    shown = [p for p in found.pairs if p.verdict != "skipped"]
    head = ["compared", "", "largest difference", "rounding explains", "in float64", "layer"]
    numbers = [[f"{x:.1e}" for x in (p.difference, p.explained, p.exact)] for p in shown]
    rows = [[p.name, p.verdict, *n, p.layer] for p, n in zip(shown, numbers, strict=True)]
    console.table(head, rows)
    for pair in found.pairs:
        if pair.why:
            console.say(f"  {pair.name}: {pair.verdict}, {pair.why}")
    return found.to_dict()


def models(console: Console, family: str = "") -> list[Said]:
    from layerwise.verbs.models import list_models

    rows = list_models(family)
    flops = [f"{r['flops'] / 1e9:.2f}" if r["flops"] else "-" for r in rows]
    cells = [[r["name"], r["family"], f"{r['params'] / 1e6:.2f}", n, ", ".join(r["weights"]) or "-"]
             for r, n in zip(rows, flops, strict=True)]  # fmt: skip
    console.table(["model", "family", "million params", "GFLOPs", "published weights"], cells)
    return rows


def doctor(console: Console) -> Said:
    from layerwise import runtime
    from layerwise.planning.hardware import available_memory

    machine = runtime.start()
    facts: dict[str, Any] = runtime.environment() | {
        "device": machine.device,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "threads": machine.threads,
        "memory available, GB": round(available_memory() / 1e9, 1),
        "disk free, GB": round(shutil.disk_usage(".").free / 1e9, 1),
        "C++ compiler": shutil.which("g++") or shutil.which("clang++") or "none (no compile)",
    }
    for name, value in facts.items():
        console.say(f"{name:22} {value}")
    for note in machine.notes:
        console.say(f"  {note}")
    return facts | {"notes": machine.notes}
