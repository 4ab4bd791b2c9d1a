"""Which form rows of text have, by the names of their fields where they say it, else by what is in
them: texts have several words and hardly repeat, labels repeat, scores are numbers.

A form says what each row becomes:

    plain              text
    labelled           text, with a target
    tagged             tokens, tags
    pairs              text_a, text_b, with a target where there is one (NLI)
    scored_pairs       text_a, text_b, the score as target
    triples            anchor, positive, negative
    spans              context, question, answers [{text, start}]
    messages           messages [{role, content}], tools, label (good or bad)
    prompt_completion  prompt, completion
    preference         prompt, chosen, rejected
"""

import ast
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from layerwise.data.delimited import NUMBER, Row
from layerwise.kinds.text.columns import Layout, Look, answering, flat_layout, look, texts_layout
from layerwise.kinds.text.dialogue import (
    Aside,
    alpaca_row,
    is_conversation,
    is_dialogue,
    is_message,
    messages_row,
    preference_row,
)

_ANSWERS = """prompt:completion prompt:response question:answer query:response query:answer
input:output instruction:response source:target problem:solution question:response prompt:answer
instruction:completion"""
STARTS = ("answer_start", "start")
NEAR = 20  # characters that an answer may stand beside where it is said to
_TRIPLES = "anchor:positive:negative query:pos:neg sent0:sent1:hard_neg query:positive:negative"


def recognise(
    rows: Sequence[Row],
    names: Sequence[str],
    header: bool,
    target: str | None = None,
    asked: bool = False,
    learn: bool = True,
) -> Layout | None:
    """The form of these rows, or None where they are no text but a table.

    names: of their fields; header: whether these were in the file. target: the field to learn, if
    the caller said. asked: it was said that they are text. learn=False guesses no label.
    """
    looks = [look(name, rows) for name in names]
    lower = {name.strip().lower(): name for name in reversed(names)} if header else {}
    return (
        _structured(looks, lower)
        or _by_names(looks, lower)
        or flat_layout(looks, lower, target, asked, learn)
    )


# ---- forms that their structure gives away -------------------------------------------------------
def _structured(looks: list[Look], lower: dict[str, str]) -> Layout | None:
    named = {look.name: look for look in looks}
    talks = [x.name for x in looks if x.kind == "list" and is_conversation(x.values[0])]
    answers = {k: lower[k] for k in ("chosen", "rejected") if k in lower}
    hh = [x.name for x in looks if x.kind == "text" and all(map(is_dialogue, x.values))]
    if len(answers) < 2 and len(hh) == 2:
        answers = dict(zip(("chosen", "rejected"), hh, strict=True))
    if len(answers) == 2:
        chosen, rejected = answers["chosen"], answers["rejected"]
        rest = [t for t in talks if t not in (chosen, rejected)]
        known = [lower[k] for k in ("prompt", "instruction", "question", "query") if k in lower]
        prompt = (rest + known + [""])[0]
        how = "HH-RLHF dialogues" if chosen in hh else f"'{chosen}' and '{rejected}'"
        make = lambda raw: preference_row(raw, prompt, chosen, rejected)  # noqa: E731
        return Layout("preference", make, how, uses=(prompt, chosen, rejected))
    if {"prompt", "completion"} <= lower.keys() and lower["prompt"] in talks:
        return answering(lower["prompt"], lower["completion"])
    if talks:
        column = talks[0]
        how = "ShareGPT" if "from" in named[column].values[0][0] else f"'{column}'"
        return Layout("messages", lambda raw: messages_row(raw, column), how)
    return _spans(looks) or _tagged(looks)


def _spans(looks: list[Look]) -> Layout | None:
    """SQuAD: a field of answers, each with its text and where it starts."""
    for x in looks:
        first = x.values[0] if x.kind in ("dict", "list") else None
        first = first[0] if isinstance(first, list) and first else first
        if not isinstance(first, dict) or "text" not in first or is_message(first):
            continue
        start = next((k for k in ("answer_start", "start") if k in first), None)
        texts = sorted((y for y in looks if y.is_text and y.words > 2), key=lambda y: -y.size)
        named = {y.name.lower(): y.name for y in looks if y.kind in ("text", "word")}
        if start and (len(texts) >= 2 or {"context", "question"} <= named.keys()):
            context = named.get("context") or texts[0].name
            asked = named.get("question") or next(y.name for y in texts if y.name != context)
            make = partial(spans_row, context=context, question=asked, answers=x.name)
            return Layout("spans", make, f"'{x.name}'", uses=(context, asked, x.name))
    return None


def _quoted(context: Look, answers: Look) -> bool:
    """Whether answers stand in their contexts, most of the time; lists and objects say where."""
    both = list(zip(map(str, context.values), map(str, answers.values), strict=False))
    found = sum(a in c or a[:1] in ("{", "[") for c, a in both)
    return answers.kind in ("list", "dict") or 2 * found > len(both)


def spans_row(raw: Row, context: str, question: str, answers: str) -> Row:
    """Answers where they stand in the context: as said, else the nearest place close by."""
    text, given = str(raw.get(context) or ""), answers_of(raw, answers)
    if not text.strip() or not str(raw.get(question) or "").strip():
        raise Aside("empty", "no context, or no question")
    said: list[tuple[str, Any]] = [
        (str(a["text"]), _start(a.get("start", a.get("answer_start")))) for a in given
    ]
    spans = [{"text": answer, "start": _place(text, answer, at)} for answer, at in said]
    row = {"context": text, "question": str(raw[question]), "answers": spans}
    for span, (answer, at) in zip(spans, said, strict=True):
        if span["start"] < 0 or at not in (None, span["start"]):
            at = -1 if at is None else at
            where = "in" if at < 0 else f"at character {at} of"
            inside = 0 <= at < len(text)
            there = f": there stands {text[at : at + len(answer)]!r}" if inside else ""
            reason = f"the answer {answer!r} is not {where} its context{there}"
            raise Aside("span", reason, row if all(s["start"] >= 0 for s in spans) else None)
    return row


def answers_of(raw: Row, column: str) -> list[Row]:
    """Each answer with its text and, where the row has it, its start. Errors: Aside."""
    given = raw.get(column) or []
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "["):  # as Python prints it
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError) as e:
            raise Aside("span", f"the answers are not readable: {given[:60]!r}") from e
    if isinstance(given, dict) and isinstance(given["text"], list):  # columns, as in `datasets`
        given = [
            dict(zip(given, cells, strict=True)) for cells in zip(*given.values(), strict=False)
        ]
    beside = {} if isinstance(given, list) else {k: raw[k] for k in STARTS if k in raw}
    given = given if isinstance(given, list) else [given]
    given = [a if isinstance(a, dict) else {"text": a, **beside} for a in given]
    return [a for a in given if str(a["text"] or "").strip()]


def _start(at: Any) -> int | None:
    """Where an answer is said to start; a number that is nowhere for what is no number."""
    return None if at is None else int(float(at)) if NUMBER.fullmatch(str(at)) else -(1 << 30)


def _place(text: str, answer: str, at: Any) -> int:
    """Where the answer stands nearest to `at`, at most NEAR characters away; -1 for nowhere.

    The first place in the text where nothing says at which.
    """
    if at is None:
        return text.find(answer)
    low = max(0, at - NEAR)
    around = text[low : max(0, at + NEAR + len(answer))]
    found = [low + m.start() for m in re.finditer(f"(?={re.escape(answer)})", around)]
    return min(found, key=lambda place: abs(place - at), default=-1)


def _tagged(looks: list[Look]) -> Layout | None:
    """Two fields of lists: words, and a tag for each."""
    lists = [x for x in looks if x.kind == "list" and all(isinstance(v, list) for v in x.values)]
    lists = [x for x in lists if not isinstance(x.values[0][0], list | dict)]
    words = [x for x in lists if all(isinstance(w, str) for v in x.values[:50] for w in v)]
    if len(lists) < 2 or not words:
        return None
    variety = {x.name: len({str(w) for v in x.values for w in v}) for x in lists}
    named = [x for x in words if x.name == "tokens"]
    tokens = (named or sorted(words, key=lambda x: -variety[x.name]))[0]
    others = [x for x in lists if x is not tokens]
    size = sum(map(len, tokens.values))
    others = [x for x in others if sum(map(len, x.values)) == size] or others
    rest = [x for x in others if "ner" in x.name.lower() or x.name.lower() == "tags"] + others
    if variety[rest[0].name] >= variety[tokens.name]:
        return None
    a, b = tokens.name, rest[0].name
    make = lambda raw: tagged_row(raw, a, b)  # noqa: E731
    return Layout("tagged", make, f"'{a}' and '{b}'", uses=(a, b))


def tagged_row(raw: Row, tokens: str, tags: str) -> Row:
    words, marks = raw.get(tokens) or [], raw.get(tags) or []
    if not words:
        raise Aside("empty", "no words")
    if len(words) != len(marks):
        raise Aside("unequal", f"{len(words)} words but {len(marks)} tags")
    return {"tokens": [str(w) for w in words], "tags": [str(t) for t in marks]}


# ---- forms that their names give away ------------------------------------------------------------
def _by_names(looks: list[Look], lower: dict[str, str]) -> Layout | None:
    named = {x.name: x for x in looks}
    asked = named.get(lower.get("instruction", ""))
    if asked and asked.kind in ("text", "word") and {"output", "response"} & lower.keys():
        return Layout("prompt_completion", alpaca_row, "Alpaca")
    for names in _TRIPLES.split():
        if all(n in lower for n in names.split(":")):
            return texts_layout("triples", [lower[n] for n in names.split(":")])
    if "label" in lower and named[lower["label"]].kind != "bool":
        return None  # a judgement on pairs; good or bad is one on answers
    if {"context", "question"} <= lower.keys():  # to be answered, in words of the context
        answers = next((lower[n] for n in ("answers", "answer", "answer_text") if n in lower), "")
        names = {"context": lower["context"], "question": lower["question"], "answers": answers}
        if not answers or _quoted(*(named[names[n]] for n in ("context", "answers"))):
            make = partial(spans_row, **names)
            said, uses = "'context' and 'question'", (*names.values(), *STARTS)
            return Layout("spans", make, said, uses=uses)
    for names in _ANSWERS.split():
        found = [named[lower[n]] for n in names.split(":") if n in lower]
        written = len(found) == 2 and all(x.kind in ("text", "word") for x in found)
        if written and any(x.is_text for x in found):
            return answering(found[0].name, found[1].name)
    return None
