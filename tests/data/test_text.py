"""Text of every form, recognised without being told, and every way in which it can be wrong."""

import gzip
import json
import lzma
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from layerwise.data import text_files
from layerwise.data.examples import Examples
from layerwise.data.splits import content_hashes, split
from layerwise.errors import DataError
from layerwise.kinds.opening import open_data
from layerwise.kinds.text.documents import texts_of
from layerwise.kinds.text.matches import matches
from layerwise.kinds.text.processor import TextProcessor
from layerwise.tasks.span import Span
from layerwise.tasks.words import Words
from layerwise.tokens.training import train_wordpiece

PROSE = [
    "The river ran slowly past the old mill that morning, and nobody said a word.",
    "A quiet day followed; the children played in the yard until it was dark.",
    "When the letter came at last, she read it twice and put it into the drawer.",
    "Rain fell on the town for a week, so the market stayed closed and empty.",
    "He had promised to return before winter, but the mountains were white already.",
    "They built the boat from what the storm had left of the house by the shore.",
]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_lines(path: Path, rows: list) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def many(make, n: int = 24) -> list:
    """Rows, with a text that is another in each."""
    return [make(i, f"{PROSE[i % 6]} This was number {i}.") for i in range(n)]


def refused(path: Path, *patterns: str, **options) -> str:
    """The sentence of the DataError; it must match every pattern and be a single line."""
    with pytest.raises(DataError) as caught:
        open_data(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} not in {message!r}"
    return message


def found(examples: Examples, kind: str) -> str:
    return " ".join(f.message for f in examples.findings if f.kind == kind)


FORMS = {
    ("text",): "plain",
    ("tokens", "tags"): "tagged",
    ("text_a", "text_b"): "pairs",
    ("text_a", "text_b", "score"): "scored_pairs",
    ("anchor", "positive", "negative"): "triples",
    ("context", "question", "answers"): "spans",
    ("messages",): "messages",
    ("prompt", "completion"): "prompt_completion",
    ("prompt", "chosen", "rejected"): "preference",
}


def form_of(examples: Examples) -> str:
    """The form of text that these fields are."""
    fields = tuple(name for name in examples.fields if name not in ("tools", "label"))
    labelled = fields == ("text",) and examples.targets is not None
    return "labelled" if labelled else FORMS[fields]


def opened_as(path: Path, form: str, **options) -> Examples:
    opened = open_data(path, **options)
    assert (opened.kind, form_of(opened)) == ("text", form), opened.understood
    return opened


# ---- documents -----------------------------------------------------------------------------------
def test_one_text_file(tmp_path):
    text = "\n".join(PROSE) + "\n"
    opened = opened_as(write(tmp_path / "a.txt", text), "plain")
    assert opened.understood == f"plain text: 1 document of {len(text)} characters"
    assert opened.rows()[0] == {"text": text}
    assert (opened.names, opened.target_kind) == (["a.txt"], "none")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, "zst"])
def test_compressed(tmp_path, pack):
    text = "\n".join(PROSE).encode()
    packed = bytes(pa.compress(text, "zstd")) if pack == "zst" else pack(text)
    name = {gzip.compress: "a.txt.gz", lzma.compress: "a.txt.xz"}.get(pack, "a.txt.zst")
    path = write(tmp_path / name, packed)
    assert opened_as(path, "plain").rows()[0]["text"] == text.decode()
    write(path, packed[: len(packed) // 2])
    refused(path, f"'{name}' is a damaged", "ends early", "copy it again")


def test_marks_line_ends_and_utf16(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        path = write(tmp_path / "a.txt", "été\r\nça va\n".encode(encoding))
        assert opened_as(path, "plain").rows()[0]["text"] == "été\nça va\n"


def test_documents_of_one_file(tmp_path):
    path = write(tmp_path / "a.txt", "<|endoftext|>".join(PROSE[:3]) + "<|endoftext|>\n")
    opened = opened_as(path, "plain")
    assert [row["text"] for row in opened.rows()] == PROSE[:3]
    assert opened.names[2] == "a.txt document 3"


def test_source_code_and_a_picture(tmp_path):
    for i in range(12):
        write(tmp_path / f"src/deep/m{i}.py", f"import os\n\n\ndef f{i}(x):\n    return x\n")
    write(tmp_path / "data.json", '{"a": 1}')
    write(tmp_path / "README.md", "# A project\n")
    write(tmp_path / "logo.png", b"\x89PNG\r\n\x1a\n" + bytes(30))
    write(tmp_path / "a.so", b"\x7fELF" + bytes(30))
    opened = opened_as(tmp_path, "plain")
    assert len(opened) == 14
    assert "src/deep/m10.py" in opened.names
    assert "logo.png" in found(opened, "unused")


def test_class_folders_with_splits(tmp_path):
    for part in ("train", "test"):
        for label in ("pos", "neg"):
            for i in range(3):
                write(tmp_path / part / label / f"{i}.txt", f"{label} {part} {PROSE[i]}")
    write(tmp_path / "train/unsup/0.txt", "no label")
    write(tmp_path / "train/unsup/1.txt", "no label either")
    write(tmp_path / "README", "about")
    opened = opened_as(tmp_path, "labelled")
    assert opened.understood == "12 texts in 2 class folders, train (6) and test (6) given"
    assert opened.labels == ("neg", "pos")
    first = opened.names.index("train/pos/0.txt")
    assert opened.labels[opened.targets[first]] == "pos"
    assert "2 files lie in folders without a class" in found(opened, "unlabelled")


def test_given_splits_by_file_name(tmp_path):
    for name in ("train", "valid", "test"):
        write(tmp_path / f"{name}.txt", PROSE[0] + name)
    assert sorted(opened_as(tmp_path, "plain").given) == ["test", "train", "val"]


# ---- rows, with and without names ----------------------------------------------------------------
LABELLED = many(lambda i, text: {"label": ["good", "bad"][i % 2], "text": text})


def labelled_table(rows: list) -> dict:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet", "columns", "no header"])
def test_text_and_label_in_every_file(tmp_path, form):
    suffix = {"columns": "json", "no header": "tsv"}.get(form, form)
    path = tmp_path / f"a.{suffix}"
    if form == "jsonl":
        as_lines(path, LABELLED)
    elif form in ("json", "columns"):
        write(path, json.dumps(LABELLED if form == "json" else labelled_table(LABELLED)))
    elif form == "parquet":
        parquet.write_table(pa.table(labelled_table(LABELLED)), path)
    elif form == "csv":
        rows = [f'{r["label"]},"{r["text"]}"' for r in LABELLED]
        write(path, "\n".join(["label,text", *rows]))
    else:
        head = [] if form == "no header" else ["label\ttext"]
        write(path, "\n".join(head + [f"{r['label']}\t{r['text']}" for r in LABELLED]))
    opened = opened_as(path, "labelled")
    assert opened.labels == ("bad", "good")
    assert opened.rows()[0] == {"text": LABELLED[0]["text"]}
    assert opened.targets.tolist() == [1, 0] * 12


def test_labels_of_every_kind(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = many(lambda i, text: {"review": text, "stars": 1 + i % 5, "id": i, "date": f"2020-{i}"})
    assert opened_as(as_lines(path, rows), "labelled").labels == ("1", "2", "3", "4", "5")
    rows = many(lambda i, text: {"body": text, "tags": ["a"] if i % 2 else ["a", "b"]})
    assert opened_as(as_lines(path, rows), "labelled").target_kind == "classes"
    rows = many(
        lambda i, text: {"body": text, "toxic": i % 2, "rude": int(i % 3 == 0), "id": f"x{i}"}
    )
    opened = opened_as(as_lines(path, rows), "labelled")
    assert opened.labels == ("rude", "toxic")
    assert opened.targets[:2].tolist() == [[1, 0], [0, 1]]
    rows = many(lambda i, text: {"body": text, "score": i / 7})
    assert opened_as(as_lines(path, rows), "labelled").target_kind == "number"
    rows = many(lambda i, text: {"title": f"On day {i} of it", "text": text, "topic": "ab"[i % 2]})
    opened = opened_as(as_lines(path, rows), "labelled")
    assert opened.rows()[1]["text"].startswith("On day 1 of it\n\nA quiet day")
    rows = many(lambda i, text: {"text": text, "kind": "ab"[i % 2], "side": "xy"[i % 2]})
    assert opened_as(as_lines(path, rows), "labelled", target="kind").labels == ("a", "b")
    refused(path, "'a.jsonl' has no column 'sides'", "did you mean 'side'", target="sides")
    assert opened_as(path, "plain", learn=False).target_kind == "none"


def test_documents_with_what_is_known_about_them(tmp_path):
    long = " ".join(PROSE * 8)
    rows = [{"text": f"{i} {long}", "author": "AB"[i % 2], "split": "train"} for i in range(12)]
    rows[-1]["split"] = "valid"
    opened = opened_as(as_lines(tmp_path / "a.jsonl", rows), "plain")
    assert opened.given.tolist() == ["train"] * 11 + ["val"]


def test_pairs_scores_and_triples(tmp_path):
    path = tmp_path / "a.tsv"
    rows = [f"{t}\tIndeed {t}" for i, t in many(lambda i, text: (i, text))]
    assert (
        opened_as(write(path, "\n".join(rows)), "pairs")
        .rows()[1]["text_b"]
        .startswith("Indeed A quiet")
    )
    scored = [f"{i % 5}.{i % 3}\t{row}" for i, row in enumerate(rows)]
    opened = opened_as(write(path, "\n".join(scored)), "scored_pairs")
    assert (opened.target_kind, opened.targets[1]) == ("number", 1.1)
    judged = [
        f"{row}\t{['entailment', 'neutral', 'contradiction', '-'][i % 4]}"
        for i, row in enumerate(rows)
    ]
    opened = opened_as(
        write(path, "\n".join(["premise\thypothesis\tgold_label", *judged])), "pairs"
    )
    assert opened.labels == ("contradiction", "entailment", "neutral")
    assert "6 of 24 rows have no target" in found(opened, "unlabelled")
    triples = [f"{row}\tNothing of this kind was ever heard of {i}." for i, row in enumerate(rows)]
    opened = opened_as(write(path, "\n".join(triples)), "triples")
    assert set(opened.rows()[0]) == {"anchor", "positive", "negative"}


def test_quotes_that_are_none(tmp_path):
    rows = [f'"Well {i}," he said, and left the room again\t{i % 2}' for i in range(24)]
    opened = opened_as(write(tmp_path / "a.tsv", "\n".join(rows)), "labelled")
    assert len(opened) == 24
    assert opened.rows()[3]["text"].startswith('"Well 3,"')
    quoted = [f'"She said ""no"" to the offer\nof day {i}"\t{"ab"[i % 2]}' for i in range(24)]
    opened = opened_as(write(tmp_path / "a.tsv", "text\tlabel\n" + "\n".join(quoted)), "labelled")
    assert opened.rows()[0]["text"] == 'She said "no" to the offer\nof day 0'


def test_tables_stay_tables(tmp_path):
    rows = ["name,age,city,income"] + [f"Ann Lee Wu {i},{20 + i},Rome,{i * 10}" for i in range(30)]
    assert open_data(write(tmp_path / "a.csv", "\n".join(rows))).kind == "table"
    assert (
        open_data(
            write(tmp_path / "a.txt", "\n".join(f"{i} {i * 2} {i / 4}" for i in range(9)))
        ).kind
        == "table"
    )


# ---- tags and spans ------------------------------------------------------------------------------
CONLL = "-DOCSTART- O\n\nAnna B-PER\nsleeps O\n. O\n\nIn O\nRome B-LOC\n\n"


def test_words_and_tags(tmp_path):
    opened = opened_as(write(tmp_path / "a.txt", CONLL), "tagged")
    assert opened.rows()[1] == {"tokens": ["In", "Rome"], "tags": ["O", "B-LOC"]}
    assert opened.labels == ("B-LOC", "B-PER", "O")
    assert Words.fits(opened) == 2
    targets = Words(opened.labels).learned(opened)(np.arange(2))["targets"]
    assert targets.tolist() == [[1, 2, 2], [2, 0, -1]]
    assert opened.names == ["a.txt line 3", "a.txt line 7"]
    universal = "# text\n" + "\n".join(f"{i}\t{w}\t_\t{t}\t_\t_\t0\t_\t_\t_" for i, w, t in
                                       [(1, "Go", "VERB"), (2, "now", "ADV")]) + "\n\n"  # fmt: skip
    opened = opened_as(write(tmp_path / "a.conllu", universal * 3), "tagged")
    assert opened.rows()[0] == {"tokens": ["Go", "now"], "tags": ["VERB", "ADV"]}
    rows = [{"id": i, "tokens": ["a", f"w{i}", "c"], "ner_tags": [0, 1, 0]} for i in range(9)]
    assert opened_as(as_lines(tmp_path / "a.jsonl", rows), "tagged").labels == ("0", "1")


def test_tags_of_unequal_number_are_set_aside(tmp_path):
    opened = opened_as(write(tmp_path / "a.conll", CONLL + "lonely\nword O\n\n"), "tagged")
    assert len(opened) == 2
    assert "1 of 3 rows have words and tags of unequal number" in found(opened, "unequal_tags")
    assert "a.conll line 10: 2 words but 1 tags" in str(opened.findings)
    rows = [{"tokens": ["a", f"b{i}"], "tags": ["O"]} for i in range(3)]
    refused(as_lines(tmp_path / "a.jsonl", rows), "a.jsonl line 1: 2 words but 1 tags; and none of")


def squad(start: int, text: str = "1888") -> dict:
    question = {"id": "q1", "question": "When was it built?",
                "answers": [{"text": text, "answer_start": start}]}  # fmt: skip
    other = {"id": "q2", "question": "Who built it?", "answers": [], "is_impossible": True}
    paragraph = {"context": "The tower was built in 1888.", "qas": [question, other]}
    return {"version": "2", "data": [{"title": "Tower", "paragraphs": [paragraph]}]}


def test_spans(tmp_path):
    opened = opened_as(write(tmp_path / "a.json", json.dumps(squad(23))), "spans")
    assert opened.rows()[0]["answers"] == [{"text": "1888", "start": 23}]
    assert opened.rows()[1]["answers"] == []
    assert opened.understood.startswith("2 questions with answers in their contexts (1 contexts)")
    assert Span.fits(opened) == 2
    assert opened.subset(np.array([0]))["answers"][0] is opened["answers"][0]
    rows = [
        {"context": t, "question": f"What is told in line {i}?",
         "answers": {"text": [t[4:9]], "answer_start": [4]}}
        for i, t in many(lambda i, text: (i, text))
    ]  # fmt: skip
    assert len(opened_as(as_lines(tmp_path / "a.jsonl", rows), "spans")) == 24


def test_an_answer_beside_its_place_is_found_close_by(tmp_path):
    path = tmp_path / "a.json"
    opened = opened_as(write(path, json.dumps(squad(20))), "spans")
    assert opened.rows()[0]["answers"] == [{"text": "1888", "start": 23}]
    assert "1 of 2 rows have an answer a little beside where they say" in found(opened, "span")
    said = "'1888' is not at character 20 of its context: there stands 'in 1'"
    assert said in found(opened, "span")
    near = squad(14, "t")  # of several the nearest
    assert opened_as(write(path, json.dumps(near)), "spans").rows()[0]["answers"][0]["start"] == 18


@pytest.mark.parametrize(
    ("start", "text"), [(0, "1888"), (23, "1889"), (400, "1888"), (-1, "1888"), ("there", "1888")]
)
def test_an_answer_that_is_not_there_is_set_aside(tmp_path, start, text):
    opened = opened_as(write(tmp_path / "a.json", json.dumps(squad(start, text))), "spans")
    assert [row["answers"] for row in opened.rows()] == [[]]
    said = f"1 of 2 rows have an answer that is not where they say and are set aside: .*{text}"
    assert re.search(said, found(opened, "span"))


def test_questions_to_be_answered(tmp_path):
    rows = [{"context": t, "question": f"What was number {i}?"} for i, t in
            many(lambda i, text: (i, text))]  # fmt: skip
    opened = opened_as(as_lines(tmp_path / "a.jsonl", rows), "spans")
    assert not Span.fits(opened)
    assert opened.rows()[3] == {**rows[3], "answers": []}


def test_questions_on_one_context_stay_together(tmp_path):
    rows = [{"context": t, "question": f"What was number {k}?",
             "answers": {"text": [t[4:9]], "answer_start": [4]}}
            for t in many(lambda i, text: text, 60) for k in range(5)]  # fmt: skip
    opened = opened_as(as_lines(tmp_path / "a.jsonl", rows), "spans")
    parts = split(opened)
    contexts = [{opened.rows()[i]["context"] for i in part} for part in parts.values()]
    assert [len(part) for part in parts.values()] == [210, 30, 60]
    assert sum(map(len, contexts)) == 60


# ---- conversations -------------------------------------------------------------------------------
def test_messages_of_every_shape(tmp_path):
    path = tmp_path / "a.jsonl"
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    opened = opened_as(as_lines(path, [{"messages": talk, "label": True}] * 3), "messages")
    assert opened.rows()[0] == {"messages": talk, "label": True}
    call = json.dumps({"name": "f", "arguments": {"x": 1}})
    shared = [{"from": "human", "value": "hi"}, {"from": "function_call", "value": call},
              {"from": "observation", "value": "2"}, {"from": "gpt", "value": "two"}]  # fmt: skip
    row = {"conversations": shared, "system": "Be brief.", "tools": '[{"name": "f"}]'}
    got = opened_as(as_lines(path, [row] * 3), "messages").rows()[0]
    assert [m["role"] for m in got["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert got["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert got["tools"] == [{"name": "f"}]
    bad = {"messages": [{"role": "wizard", "content": "x"}]}
    opened = opened_as(as_lines(path, [{"messages": talk}, bad, {"messages": []}]), "messages")
    assert "the role 'wizard' is none of" in found(opened, "role")
    assert len(opened) == 1


def test_prompts_and_completions(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = many(lambda i, text: {"prompt": text, "completion": f"Yes {i}."})
    assert opened_as(as_lines(path, rows), "prompt_completion").rows()[0]["completion"] == "Yes 0."
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Hi", "output": "Ho"},
    ]
    opened = opened_as(as_lines(path, rows), "prompt_completion")
    assert [r["prompt"] for r in opened.rows()] == ["Add.\n1 2", "Hi"]
    rows = [{"instruction": "And?", "output": "5", "history": [["2?", "3"]], "system": "Count."}]
    got = opened_as(as_lines(path, rows), "prompt_completion").rows()[0]
    assert [m["content"] for m in got["prompt"]] == ["Count.", "2?", "3", "And?"]
    rows = many(
        lambda i, text: {"frage": text, "antwort": f"Das weiss niemand so genau, Nummer {i}."}
    )
    assert (
        opened_as(as_lines(path, rows), "prompt_completion").rows()[0]["prompt"] == rows[0]["frage"]
    )


def test_preferences(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "Why?", "chosen": "Because it is.", "rejected": f"No {i}."} for i in range(3)
    ]
    assert opened_as(as_lines(path, rows), "preference").rows()[2] == rows[2]
    before = "\n\nHuman: Why is it so?\n\nAssistant: Is it?\n\nHuman: Yes.\n\nAssistant: "
    rows = [{"chosen": before + f"Then so {i}.", "rejected": before + "Bah."} for i in range(3)]
    rows.append({"chosen": before + "Same.", "rejected": before + "Same."})
    opened = opened_as(as_lines(path, rows), "preference")
    assert [m["role"] for m in opened.rows()[0]["prompt"]] == ["user", "assistant", "user"]
    assert opened.rows()[0]["chosen"] == [{"role": "assistant", "content": "Then so 0."}]
    assert "choose between two equal answers" in found(opened, "same_answers")
    talk = [{"from": "human", "value": "hi"}]
    rows = [{"conversations": talk, "chosen": {"from": "gpt", "value": f"ho {i}"},
             "rejected": {"from": "gpt", "value": "no"}} for i in range(3)]  # fmt: skip
    got = opened_as(as_lines(path, rows), "preference").rows()[1]
    assert got["prompt"] == [{"role": "user", "content": "hi"}]
    assert got["chosen"] == [{"role": "assistant", "content": "ho 1"}]


# ---- columns that are not used -------------------------------------------------------------------
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SAID = [{"role": "assistant", "content": "so"}]
SPAN = {"text": ["river"], "answer_start": [4]}
AB, YES_NO, OWN, ROW = ("a", "b"), (True, False), "a text of its own", "the number of the row"
USED = {  # of each form the columns that are used, and others; of a tuple a value for each row
    "plain": ({"text": OWN}, {"id": ROW}),
    "labelled": ({"text": OWN, "label": AB}, {"id": ROW, "author": ["x"]}),
    "several labels": ({"text": OWN, "rude": (0, 1), "toxic": (1, 0)}, {"id": "x"}),
    "titled": ({"title": OWN, "text": OWN, "label": AB}, {"url": "x"}),
    "pairs": ({"text_a": OWN, "text_b": OWN, "label": AB}, {"id": ROW}),
    "scored": ({"text_a": OWN, "text_b": OWN, "score": (0.5, 1.2)}, {"genre": "x"}),
    "triples": ({"anchor": OWN, "positive": "So.", "negative": "Not so."}, {"id": ROW}),
    "tagged": ({"tokens": (["a", "b"], ["c"]), "ner_tags": ([0, 1], [0])}, {"pos_tags": [1, 1]}),
    "spans": ({"context": OWN, "question": "What ran?", "answers": SPAN}, {"title": "x"}),
    "lists": ({"context": OWN, "question": "What ran?", "answers": ["number"]}, {"start": 80}),
    "bare": ({"context": OWN, "question": "What?", "answer": "number", "start": 80}, {"id": ROW}),
    "unanswered": ({"context": OWN, "question": "What ran slowly?"}, {"id": ROW}),
    "messages": ({"messages": TALK, "tools": "[]", "system": "Be brief."}, {"source": "x"}),
    "KTO": ({"messages": TALK, "label": YES_NO}, {"id": ROW}),
    "classes": ({"messages": TALK}, {"label": AB}),
    "completion": ({"prompt": OWN, "completion": "Yes.", "label": YES_NO}, {"id": ROW}),
    "tools": ({"prompt": TALK[:1], "completion": TALK[1:], "tools": "[]"}, {"id": ROW}),
    "Alpaca": ({"instruction": OWN, "input": "1", "output": "3", "history": []}, {"id": ROW}),
    "preference": ({"prompt": OWN, "chosen": "Yes.", "rejected": "No."}, {"tools": "[]"}),
    "talks": ({"prompt": OWN, "chosen": SAID, "rejected": "No.", "tools": "[]"}, {"margin": 2}),
    "asked": ({"instruction": OWN, "input": "1", "chosen": "So.", "rejected": "No."}, {"id": ROW}),
}  # fmt: skip


@pytest.mark.parametrize("form", USED)
def test_columns_that_are_not_used_are_named(tmp_path, form):
    used, others = USED[form]
    columns = used | others | {"split": ("train", "train", "test")}

    def row(i: int, text: str) -> dict:
        chosen = {k: v[i % len(v)] if isinstance(v, tuple) else v for k, v in columns.items()}
        own = {OWN: text, ROW: i}
        return {k: own.get(v, v) if isinstance(v, str) else v for k, v in chosen.items()}

    opened = open_data(as_lines(tmp_path / "a.jsonl", many(row)))
    names = ", ".join(f"'{name}'" for name in others)
    assert found(opened, "unused") == f"{len(others)} columns are not used: {names}"


def test_a_column_that_one_of_several_files_uses_is_used(tmp_path):
    as_lines(tmp_path / "train.jsonl", LABELLED)
    as_lines(tmp_path / "test.jsonl", [{**row, "label": None} for row in LABELLED])
    assert not found(opened_as(tmp_path, "labelled"), "unused")
    assert not found(opened_as(write(tmp_path / "a.txt", CONLL), "tagged"), "unused")


# ---- what is wrong -------------------------------------------------------------------------------
def test_wrong_encodings_name_file_line_and_byte(tmp_path):
    path = write(tmp_path / "a.txt", ("ok\n" * 3 + "caf\u00e9 noir\n" * 50).encode("cp1252"))
    refused(
        path, "'a.txt' line 4 is not UTF-8: byte 12 of the file is 0xe9", "iconv -f WINDOWS-1252"
    )
    write(
        path,
        ("\u0420\u043e\u0441\u0441\u0438\u044f \u0438 \u043c\u0438\u0440\n" * 50).encode("cp1251"),
    )
    refused(path, "line 1 is not UTF-8", "WINDOWS-1251", "GB18030")
    write(path, "abc\n".encode("utf-16-le"))
    refused(path, "line 1 holds zero bytes", "iconv -f UTF-16LE")
    table = write(tmp_path / "a.csv", b"text,label\n" + "\n".join(
        f"{t} caf\u00e9,{'ab'[i % 2]}" for i, t in many(lambda i, text: (i, text.replace(",", "")))
    ).encode("cp1252"))  # fmt: skip
    refused(table, "'a.csv' line 2 is not UTF-8: byte", "WINDOWS-1252")
    far = write(tmp_path / "far.txt", b"x" * 99 + b"\n" + b"y\n" * (1 << 20) + b"\xff end")
    refused(far, f"line {2 + (1 << 20):,} is not UTF-8: byte {100 + (2 << 20):,}")


def test_a_line_of_two_gigabytes_is_never_held(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write(b'{"text": "')
        for _ in range(2048):
            out.write(b"a" * (1 << 20))
    read = 0

    def counted(stream_blocks=text_files.blocks):
        nonlocal read
        for block in stream_blocks(path):
            read += len(block)
            yield block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "LONGEST_LINE", 1 << 24)
        patch.setattr(text_files, "blocks", lambda path: counted())
        refused(path, "'a.jsonl.zst' line 1 is longer than 16 MiB", "fold")
    assert read < 40 << 20


def test_lines_across_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 7)
    rows = [{"text": f"{t} \u2028 \u00e9\u00e8 {i}"} for i, t in many(lambda i, text: (i, text))]
    path = as_lines(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text().encode().decode("unicode_escape"), "utf-8")
    assert [n for n, _ in text_files.lines(path)] == list(range(1, 25))
    assert open_data(path).rows()[5]["text"] == rows[5]["text"]


def test_empty_rows_are_set_aside_and_listed(tmp_path):
    rows = [*LABELLED, {"label": "good", "text": "  "}, {"label": "bad", "text": None}]
    opened = opened_as(as_lines(tmp_path / "a.jsonl", rows), "labelled")
    assert len(opened) == 24
    assert "2 of 26 rows are empty and are set aside: 'a.jsonl line 25: no text'" in found(
        opened, "empty"
    )
    refused(write(tmp_path / "b.txt", "\n \n"), "'b.txt' holds no text, only blanks")
    write(tmp_path / "c/one.txt", PROSE[0])
    write(tmp_path / "c/two.txt", "\n")
    assert "two.txt" in found(opened_as(tmp_path / "c", "plain"), "empty")


def test_damaged_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": \n')
    refused(path, "a.jsonl line 2 is not a JSON object")
    refused(write(path, "[1, 2]\n"), "line 1 is not a JSON object")
    refused(write(tmp_path / "a.json", '[{"text": "a"'), "'a.json' is not JSON", "copy it again")
    refused(write(tmp_path / "a.json", "[1, 2]"), "should hold a list of objects")


def test_files_that_do_not_belong_together(tmp_path):
    as_lines(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "x"}]}] * 3)
    as_lines(tmp_path / "b.jsonl", LABELLED)
    refused(tmp_path, r"2 files of different forms: 'a.jsonl' \(messages\), 'b.jsonl' \(labelled\)")
    for name in ("one", "two"):
        as_lines(tmp_path / "c" / name / "train.jsonl", LABELLED)
    refused(tmp_path / "c", r"holds 2 folders of rows \('one', 'two'\); name one of them")


def test_a_label_that_is_none(tmp_path):
    rows = many(lambda i, text: {"text": text, "label": f"number {i}"})
    refused(as_lines(tmp_path / "a.jsonl", rows), "24 different values in 24 rows", "--target")


def test_text_splits_and_hashes_like_other_data(tmp_path):
    opened = open_data(as_lines(tmp_path / "a.jsonl", LABELLED))
    parts = split(opened, seed=1)
    assert sum(map(len, parts.values())) == 24
    assert len(set(content_hashes(opened))) == 24
    talk = [{"messages": [{"role": "user", "content": f"hi {i % 2}"}]} for i in range(4)]
    opened = open_data(as_lines(tmp_path / "b.jsonl", talk))
    assert len(set(content_hashes(opened))) == 2
    assert texts_of(opened) == ["hi 0", "hi 1", "hi 0", "hi 1"]
    assert texts_of(opened.subset(np.array([1]))) == ["hi 1"]


def test_rows_of_texts_are_encoded_as_the_texts_themselves(tmp_path):
    processor = TextProcessor(train_wordpiece(PROSE, 200), max_seq_len=12, token_types=True)
    plain = [processor.encode(rows) for rows in (PROSE, [{"text": t} for t in PROSE])]
    assert all(map(np.array_equal, *plain))
    rows = [{"text_a": a, "text_b": b} for a, b in zip(PROSE, PROSE[::-1], strict=True)]
    named, bare = processor(rows), processor([tuple(row.values()) for row in rows])
    assert named.keys() == bare.keys() == {"tokens", "token_types"}
    assert all(bool((named[k] == bare[k]).all()) for k in named)
    assert named["tokens"].shape == (6, 12)
    assert set(named["token_types"].unique().tolist()) == {0, 1}
    assert processor.encode([]) == []
    with pytest.raises(DataError, match="not rows of prompt"):
        processor.encode([{"prompt": "a", "completion": "b"}])


# ---- real data -----------------------------------------------------------------------------------
REAL = {
    "text/tinyshakespeare.txt": ("plain", 1, "1 document of 1,115,394 characters"),
    "text/tinystories-lower-4mb.txt.gz": ("plain", 1, "4,181,740 characters"),
    "text-classification/sst2": ("labelled", 68221, "2 classes, train (60,614), val (6,735) and"),
    "text-classification/ag_news": (
        "labelled",
        17601,
        "4 classes, train (10,001) and test (7,600)",
    ),
    "sts-b": ("scored_pairs", 8628, "a number from 0 to 5, train (5,749), val (1,500) and test"),
    "ner-wnut17": ("tagged", 5690, "13 tags, train (3,394), val (1,009) and test (1,287) given"),
    "qa-xquad": ("spans", 3570, "(720 contexts)"),
    "qa-xquad/xquad.en.json.gz": ("spans", 1190, "(240 contexts)"),
    "math-gsm8k": ("prompt_completion", 8792, "train (7,473) and test (1,319) given"),
    "preference-hh-rlhf": ("preference", 2312, "HH-RLHF dialogues"),
    "instruction-llamafactory/alpaca_en_demo.json.gz": ("prompt_completion", 999, "Alpaca"),
    "instruction-llamafactory/identity.json.gz": ("prompt_completion", 91, "Alpaca"),
    "instruction-llamafactory/dpo_en_demo.json.gz": ("preference", 300, "'chosen' and"),
    "instruction-llamafactory/kto_en_demo.json.gz": ("messages", 300, "a verdict, good or bad"),
    "instruction-llamafactory/glaive_toolcall_en_demo.json.gz": ("messages", 300, "tools"),
    "instruction-llamafactory/c4_demo.jsonl.gz": ("plain", 300, "300 documents of"),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_text_is_understood(shared_data, name):
    form, n, said = REAL[name]
    opened = opened_as(shared_data / name, form)
    assert len(opened) == n
    assert said in opened.understood
    assert not [f for f in opened.findings if f.severity == "error"]


@pytest.mark.data
@pytest.mark.slow
def test_the_books_are_understood(shared_data):
    opened = opened_as(shared_data / "text", "plain")
    assert "115 documents" in opened.understood
    assert "train (107), val (3) and test (3) given" in opened.understood


@pytest.mark.data
def test_real_tables_stay_tables(shared_data):
    for path in sorted((shared_data / "tabular").iterdir()):
        if "adult.data" not in path.name:  # the test file is like it, and half as long
            assert open_data(path).kind == "table", path
    refused(shared_data / "text-classification", "holds 2 folders of rows")
    refused(shared_data / "instruction-llamafactory", "6 files of different forms")


# ---- what looks like something else --------------------------------------------------------------
def test_sentences_with_a_comma_each_are_no_table(tmp_path):
    lines = [
        "Slow service, cold soup",
        "Nice view, bad wine",
        "Good, cheap",
        "Loud, dark",
        "So, so",
    ]
    opened = opened_as(write(tmp_path / "a.txt", "\n".join(lines)), "plain", learn=False)
    assert texts_of(opened)[0].splitlines() == lines
    opened_as(
        write(tmp_path / "b.txt", "I would be back\nwe have waited long\nit cost just 20\n"),
        "plain",
    )
    numbers = "\n".join(f"{i}.5, {i + 1}, {'ab'[i % 2]}" for i in range(30))
    assert open_data(write(tmp_path / "c.txt", numbers)).kind == "table"


def test_a_text_like_a_table_among_many_is_one_of_them(tmp_path):
    for i, text in enumerate(many(lambda i, text: text)):
        write(tmp_path / ["bad", "good"][i % 2] / f"{i}.txt", text)
    write(tmp_path / "good" / "menu.txt", "\n".join(f"dish {i}, {i} euros" for i in range(9)))
    opened = opened_as(tmp_path, "labelled")
    assert (len(opened), opened.labels) == (25, ("bad", "good"))


def test_names_of_few_files_make_no_split(tmp_path):
    for name in ("train", "test_a", "model", "loader", "layers"):
        write(tmp_path / f"{name}.py", f"# {PROSE[0]}\nx = '{name}'\n")
    assert not any(opened_as(tmp_path, "plain").given)


def test_rows_that_begin_with_a_hash_or_a_bar_are_rows(tmp_path):
    rows = [
        f"{'#sad, ' * (i < 4)}{text}\t{'ab'[i % 2]}" for i, text in enumerate(many(lambda i, t: t))
    ]
    assert len(opened_as(write(tmp_path / "a.tsv", "\n".join(rows)), "labelled")) == 24
    head = opened_as(write(tmp_path / "b.tsv", "\n".join(["#text\tlabel", *rows[4:]])), "labelled")
    assert (head.target_name, len(head)) == ("label", 20)
    rows = [f"{text};{'ab'[i % 2]}" for i, text in enumerate(many(lambda i, t: t.replace(";", "")))]
    said = write(tmp_path / "c.csv", "\n".join(["# made in May", "# of two", "text;label", *rows]))
    assert len(opened_as(said, "labelled")) == 24


def test_a_blank_before_a_quote_in_tabs_swallows_nothing(tmp_path):
    rows = [
        f"{'ab'[i % 2]}\t{' ' + chr(34) * (i % 9 == 3)}{t}"
        for i, t in enumerate(many(lambda i, t: t))
    ]
    assert (
        len(opened_as(write(tmp_path / "a.tsv", "\n".join(["label\ttext", *rows])), "labelled"))
        == 24
    )


def test_comments_of_conll_are_no_words(tmp_path):
    block = "red O\nJane B-PER\nran O\n\n"
    for head in ("# s1\n", "#s1\n", "# text = red Jane ran\n"):
        opened = opened_as(write(tmp_path / "a.conll", 20 * (head + block)), "tagged")
        assert opened.labels == ("B-PER", "O")
    trailing = write(tmp_path / "b.conll", "red O \nJane B-PER\n\n" + 20 * block)
    assert len(opened_as(trailing, "tagged")) == 21


# ---- as the hub has it ---------------------------------------------------------------------------
def hub(path: Path, columns: dict, features: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = json.dumps({"info": {"features": features}})
    parquet.write_table(pa.table(columns).replace_schema_metadata({"huggingface": info}), path)


def test_numbers_of_classes_have_the_names_of_the_schema(tmp_path):
    names = {"label": {"_type": "ClassLabel", "names": ["neg", "pos"]}}
    for split_name, labels in (("train", [0, 1]), ("test", [1, 0]), ("unsupervised", [-1, -1])):
        texts = many(lambda i, text, s=split_name: f"{text} {s}")
        columns = {"text": texts, "label": [labels[i % 2] for i in range(24)]}
        hub(tmp_path / "data" / f"{split_name}-00000.parquet", columns, names)
    write(tmp_path / "dataset_infos.json", json.dumps({"default": {"features": names}}))
    opened = opened_as(tmp_path, "labelled")
    assert (opened.labels, len(opened)) == (("neg", "pos"), 48)
    assert "24 of 72 rows have no target" in found(opened, "unlabelled")
    kinds = {"_type": "ClassLabel", "names": ["O", "B-PER"]}
    words, tags = [[f"red{i}", "Jane"] for i in range(24)], [[0, 1]] * 24
    hub(
        tmp_path / "n.parquet",
        {"tokens": words, "ner_tags": tags},
        {"ner_tags": {"feature": kinds}},
    )
    assert opened_as(tmp_path / "n.parquet", "tagged").labels == ("B-PER", "O")


def test_mere_numbers_do_not_say_what_matches(tmp_path):
    rows = many(lambda i, t: {"premise": t, "hypothesis": f"{t} So it was.", "label": i % 3})
    opened = opened_as(as_lines(tmp_path / "a.jsonl", rows), "pairs")
    with pytest.raises(DataError, match="no label says that two do"):
        matches(opened)


@pytest.mark.parametrize(
    "answer",
    [
        {"answer": "1888"},
        {"answer_text": "1888", "answer_start": 24},
        {"answers": ["1888"]},
        {"answers": "{'text': ['1888'], 'answer_start': [24]}"},
        {"answers": {"text": ["1888"], "answer_start": ["24"]}},
    ],
)
def test_answers_of_any_shape_are_kept(tmp_path, answer):
    said = "The mill was built in A 1888"
    rows = [
        {"context": f"{said}, as number {i}.", "question": f"When was {i}?", **answer}
        for i in range(24)
    ]
    opened = opened_as(as_lines(tmp_path / "a.jsonl", rows), "spans")
    assert Span.fits(opened) == 2
    assert opened.rows()[0]["answers"] == [{"text": "1888", "start": 24}]


def test_answers_in_words_of_their_own_are_completions(tmp_path):
    rows = many(
        lambda i, t: {"context": t, "question": f"Why {i}?", "answer": f"Nobody knows {i}."}
    )
    opened_as(as_lines(tmp_path / "a.jsonl", rows), "prompt_completion")


def test_cells_that_are_no_text_break_nothing(tmp_path):
    half = many(lambda i, t: {"text": f"{t} \ud83d", "label": "ab"[i % 2]})
    assert texts_of(opened_as(as_lines(tmp_path / "a.jsonl", half), "labelled"))[0].endswith(" ?")
    long = "\n".join(["text,label", *(f"{'word ' * 40_000}{i},{'ab'[i % 2]}" for i in range(12))])
    assert len(opened_as(write(tmp_path / "b.csv", long), "labelled")) == 12
    objects = many(lambda i, t: {"text": t, "label": {"name": "ab"[i % 2]}})
    refused(as_lines(tmp_path / "c.jsonl", objects), "holds objects, not labels", target="label")
    counted = many(
        lambda i, t: {"question": f"{t} How many?", "answer": i if i % 2 else "none of them"}
    )
    opened_as(as_lines(tmp_path / "d.jsonl", counted), "prompt_completion")
    said = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    }
    opened = opened_as(
        as_lines(tmp_path / "e.jsonl", [said] * 9 + [{"messages": ["hi"]}]), "messages"
    )
    assert "without a role" in found(opened, "role")
    write(tmp_path / "f" / "pos" / "my document 3.txt", PROSE[0])
    for i, text in enumerate(PROSE):
        write(tmp_path / "f" / ["pos", "neg"][i % 2] / f"{i}.txt", text)
    assert len(opened_as(tmp_path / "f", "labelled")) == 7
    refused(write(tmp_path / "g.jsonl", "[" * 5000 + "\n"), "line 1 is not a JSON object")
