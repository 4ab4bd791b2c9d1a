"""Which form rows of text have: by the names of their columns where these say it, else by what is
in them, see `columns`.
"""

import ast
import re
from dataclasses import replace
from typing import Any

from layerwise.data.delimited import NUMBER, RawTable, Row
from layerwise.data.records import SPLIT_NAMES, TARGET_CURE, Reading, no_column
from layerwise.kinds.text import dialogue
from layerwise.kinds.text.columns import Columns, answering, besides, flat_layout, profile
from layerwise.kinds.text.layouts import Aside, Layout, Made, Mended, Names, named_so, texts_layout

_ANSWERS = """prompt:completion prompt:response question:answer query:response query:answer
input:output instruction:response source:target problem:solution question:response prompt:answer
instruction:completion"""
STARTS = ("answer_start", "start")
NEAR = 20  # characters that an answer may stand beside where it is said to
_TRIPLES = "anchor:positive:negative query:pos:neg sent0:sent1:hard_neg query:positive:negative"


def recognise(
    raw: RawTable, sample: list[Row], columns: list[str], reading: Reading, asked: bool
) -> Layout | None:
    """The form of these rows, or None where they are not text but a table.

    columns: of the sample. asked: the caller said that it is text.
    Errors: there is no column to learn as asked for.
    """
    if raw.what == "CoNLL":
        return tagged_layout("tokens", "tags", "CoNLL")
    names = [c for c in columns if c != reading.split_column and c.lower() not in SPLIT_NAMES]
    lower = {name.strip().lower(): name for name in reversed(names)} if raw.header else {}
    target = reading.target if reading.learn or reading.target in columns else None
    learn = reading.learn or reading.target_kind == "classes"
    found = [profile(name, sample) for name in names]
    layout = _structured(found, lower) or _by_names(found, lower)
    layout = layout or flat_layout(found, lower, target, asked, learn)
    if layout and reading.learn and reading.target is not None and reading.target not in columns:
        no_column(raw.file, columns, reading.target, TARGET_CURE)
    return replace(layout, said=raw.what or layout.said) if layout else None


# ---- forms that their structure gives away -------------------------------------------------------
def _structured(columns: Columns, lower: Names) -> Layout | None:
    named = {c.name: c for c in columns}
    talks = [c.name for c in columns if c.kind == "list" and dialogue.is_conversation(c.values[0])]
    answers = [lower[k] for k in ("chosen", "rejected") if k in lower]
    hh = [c.name for c in columns if c.kind == "text" and all(map(dialogue.is_dialogue, c.values))]
    answers = hh if len(answers) < 2 and len(hh) == 2 else answers
    if len(answers) == 2:
        known = [lower[k] for k in ("prompt", "instruction", "question", "query") if k in lower]
        prompt = [*(t for t in talks if t not in answers), *known, ""][0]
        said = "HH-RLHF dialogues" if answers[0] in hh else f"'{answers[0]}' and '{answers[1]}'"
        uses = [prompt, *answers] + ["context", "input"] * (prompt == "instruction")
        spoken = any(dialogue.is_spoken(v) for c in columns if c.name in uses for v in c.values)
        uses += besides(columns) if spoken else []
        make = lambda raw: dialogue.preference_row(raw, prompt, *answers)  # noqa: E731
        return Layout("preference", make, said, tuple(uses))
    if {"prompt", "completion"} <= lower.keys() and lower["prompt"] in talks:
        return answering(lower["prompt"], lower["completion"], columns)
    if talks:
        said = "ShareGPT" if "from" in named[talks[0]].values[0][0] else f"'{talks[0]}'"
        uses = (talks[0], "system", *besides(columns))
        return Layout("messages", lambda raw: dialogue.messages_row(raw, talks[0]), said, uses)
    return _spans(columns) or _tagged(columns)


def _spans(columns: Columns) -> Layout | None:
    """SQuAD: a column of answers, each with its text and where it starts."""
    for x in columns:
        first = x.values[0] if x.kind in ("dict", "list") else None
        first = first[0] if isinstance(first, list) and first else first
        if not isinstance(first, dict) or "text" not in first or dialogue.is_message(first):
            continue
        texts = sorted((c for c in columns if c.is_text and c.words > 2), key=lambda c: -c.size)
        named = {c.name.lower(): c.name for c in columns if c.kind in ("text", "word")}
        starts = any(k in first for k in STARTS)
        if starts and (len(texts) >= 2 or {"context", "question"} <= named.keys()):
            context = named.get("context") or texts[0].name
            asked = named.get("question") or next(c.name for c in texts if c.name != context)
            return _spans_layout((context, asked, x.name), f"'{x.name}'")
    return None


def _spans_layout(columns: tuple[str, str, str], said: str, *uses: str) -> Layout:
    """columns: the context, the question, the answers. uses: other columns that are read."""
    return Layout("spans", lambda raw: spans_row(raw, *columns), said, (*columns, *uses))


def _quoted(contexts: list[Any], answers: list[Any]) -> bool:
    """Whether answers stand in their contexts, most of the time; lists and objects say where."""
    both = list(zip(map(str, contexts), map(str, answers), strict=False))
    return 2 * sum(a in c or a[:1] in ("{", "[") for c, a in both) > len(both)


def spans_row(raw: Row, context: str, question: str, answers: str) -> Made:
    """Answers where they stand in the context: as said, else the nearest place close by."""
    text, given = str(raw.get(context) or ""), answers_of(raw, answers)
    if not text.strip() or not str(raw.get(question) or "").strip():
        return Aside("empty", "no context, or no question")
    if given is None:
        return Aside("span", f"the answers cannot be read: {raw[answers][:60]!r}")
    said = [(str(a["text"]), _start(a.get("start", a.get("answer_start")))) for a in given]
    spans = [{"text": answer, "start": _place(text, answer, at)} for answer, at in said]
    row = {"context": text, "question": str(raw[question]), "answers": spans}
    for span, (answer, at) in zip(spans, said, strict=True):
        if span["start"] < 0 or at not in (None, span["start"]):
            at = -1 if at is None else at
            where = "in" if at < 0 else f"at character {at} of"
            found = f": there stands {text[at : at + len(answer)]!r}" * (0 <= at < len(text))
            reason = f"the answer {answer!r} is not {where} its context{found}"
            usable = all(s["start"] >= 0 for s in spans)
            return Mended(row, reason) if usable else Aside("span", reason)
    return row


def answers_of(raw: Row, column: str) -> list[Row] | None:
    """Each answer with its text and, where the row has it, its start; None: not readable."""
    given = raw.get(column) or []
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "["):  # as Python prints it
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            return None
    if isinstance(given, dict) and isinstance(given["text"], list):  # columns, as in `datasets`
        answers = zip(*given.values(), strict=False)
        given = [dict(zip(given, cells, strict=True)) for cells in answers]
    beside = {} if isinstance(given, list) else {k: raw[k] for k in STARTS if k in raw}
    given = given if isinstance(given, list) else [given]
    given = [a if isinstance(a, dict) else {"text": a, **beside} for a in given]
    return [a for a in given if str(a["text"] or "").strip()]


def _start(at: object) -> int | None:
    """Where an answer is said to start; for what is not a number, a place that is nowhere near."""
    return None if at is None else int(float(str(at))) if NUMBER.fullmatch(str(at)) else -(1 << 30)


def _place(text: str, answer: str, at: int | None) -> int:
    """Where the answer stands nearest to `at`, at most NEAR characters away; -1 for nowhere.

    The first place in the text where nothing says at which.
    """
    if at is None:
        return text.find(answer)
    low = max(0, at - NEAR)
    around = text[low : max(0, at + NEAR + len(answer))]
    found = [low + m.start() for m in re.finditer(f"(?={re.escape(answer)})", around)]
    return min(found, key=lambda place: abs(place - at), default=-1)


def _tagged(columns: Columns) -> Layout | None:
    """Two columns of lists: words, and a tag for each."""
    lists = [c for c in columns if c.kind == "list" and all(isinstance(v, list) for v in c.values)]
    lists = [c for c in lists if not isinstance(c.values[0][0], list | dict)]
    words = [c for c in lists if all(isinstance(w, str) for v in c.values[:50] for w in v)]
    if len(lists) < 2 or not words:
        return None
    variety = {c.name: len({str(w) for v in c.values for w in v}) for c in lists}
    tokens = max(words, key=lambda c: (c.name == "tokens", variety[c.name]))
    others = [c for c in lists if c is not tokens]
    size = sum(map(len, tokens.values))
    others = [c for c in others if sum(map(len, c.values)) == size] or others
    tags = [c for c in others if "ner" in c.name.lower() or c.name.lower() == "tags"] + others
    if variety[tags[0].name] >= variety[tokens.name]:
        return None
    return tagged_layout(tokens.name, tags[0].name)


def tagged_layout(tokens: str, tags: str, said: str = "") -> Layout:
    said = said or f"'{tokens}' and '{tags}'"
    return Layout("tagged", lambda raw: tagged_row(raw, tokens, tags), said, (tokens, tags))


def tagged_row(raw: Row, tokens: str, tags: str) -> Made:
    words, marks = raw.get(tokens) or [], raw.get(tags) or []
    if not words:
        return Aside("empty", "no words")
    if len(words) != len(marks):
        return Aside("unequal_tags", f"{len(words)} words but {len(marks)} tags")
    return {"tokens": list(map(str, words)), "tags": list(map(str, marks))}


# ---- forms that their names give away ------------------------------------------------------------
def _by_names(columns: Columns, lower: Names) -> Layout | None:
    named = {c.name: c for c in columns}
    asked = named.get(lower.get("instruction", ""))
    if asked and asked.kind in ("text", "word") and {"output", "response"} & lower.keys():
        return Layout("prompt_completion", dialogue.alpaca_row, "Alpaca", dialogue.ALPACA)
    if found := named_so(_TRIPLES, named, lower):
        return texts_layout("triples", found[0])
    if "label" in lower and named[lower["label"]].kind != "bool":
        return None  # a judgement on pairs; good or bad is one on answers
    if {"context", "question"} <= lower.keys():  # to be answered, in words of the context
        answers = next((lower[n] for n in ("answers", "answer", "answer_text") if n in lower), "")
        context, question = lower["context"], lower["question"]
        if not answers or _quoted(named[context].values, named[answers].values):
            bare = answers and str(named[answers].values[0])[:1] not in ("{", "[")
            starts = STARTS if bare else ()
            return _spans_layout((context, question, answers), "'context' and 'question'", *starts)
    written = {c.name: c for c in columns if c.kind in ("text", "word")}
    for prompt, completion in named_so(_ANSWERS, written, lower):
        if written[prompt].is_text or written[completion].is_text:
            return answering(prompt, completion, columns)
    return None
