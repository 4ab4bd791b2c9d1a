"""Forms of rows of text, and what becomes of a raw row: it is used, mended or set aside.

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

from collections.abc import Callable, Container
from dataclasses import dataclass

from layerwise.data.delimited import Row
from layerwise.data.naming import some

FORMS = {  # the fields of each, and what its rows are called
    "plain": (("text",), "texts"),
    "labelled": (("text",), "texts with a target"),
    "tagged": (("tokens", "tags"), "sentences with a tag for each word"),
    "pairs": (("text_a", "text_b"), "pairs of texts"),
    "scored_pairs": (("text_a", "text_b"), "pairs of texts with a score"),
    "triples": (
        ("anchor", "positive", "negative"), "triples of a text, one like it and one unlike it"),
    "spans": (("context", "question", "answers"), "questions with answers in their contexts"),
    "messages": (("messages",), "conversations"),
    "prompt_completion": (("prompt", "completion"), "prompts with completions"),
    "preference": (("prompt", "chosen", "rejected"), "prompts with a chosen and a rejected answer"),
}  # fmt: skip
FIELDS = {form: fields for form, (fields, _) in FORMS.items()}
CALLED = {form: called for form, (_, called) in FORMS.items()}
LEARNED = ("tags", "answers", "score")  # fields that are not read but learned


@dataclass(frozen=True)
class Aside:
    """Why a row cannot be used: the kind of fault, a key of `documents.FAULTS`, and in words."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Mended:
    """A row that can be used after a correction, and in words what was wrong."""

    row: Row
    reason: str


Made = Row | Aside | Mended
Names = dict[str, str]  # of columns, by their names in lower case; empty without a header


@dataclass(frozen=True)
class Layout:
    """The form of rows, and how a raw row becomes one of that form."""

    form: str
    make: Callable[[Row], Made]
    said: str  # which columns were taken for what
    uses: tuple[str, ...]  # every column that `make` reads or that is a target; some may be absent
    label: str = ""  # the column that is the target
    labels: tuple[str, ...] = ()  # several columns that say yes or no to a label each


def empty(raw: Row, *columns: str) -> Aside | None:
    """What to say where one of these columns of a row holds nothing, or only blanks."""
    for column in columns:
        value = raw.get(column)
        if value in (None, [], {}) or not str(value).strip():
            return Aside("empty", f"no {column}")
    return None


def texts_layout(
    form: str, columns: list[str], label: str = "", said: str = "", labels: tuple[str, ...] = ()
) -> Layout:
    """Columns of text under the form's own names."""

    def make(raw: Row) -> Made:
        texts = (str(raw[column]) for column in columns)
        return empty(raw, *columns) or dict(zip(FIELDS[form], texts, strict=True))

    said = said or some(columns).replace(", ", " and ")
    return Layout(form, make, said, (*columns, label, *labels), label, labels)


def named_so(choices: str, among: Container[str], lower: Names) -> list[list[str]]:
    """Groups of names such as "title:text" of which every column is there."""
    found = [[lower.get(name, "") for name in names.split(":")] for names in choices.split()]
    return [names for names in found if all(name in among for name in names)]
