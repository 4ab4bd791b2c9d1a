"""The audit of texts: damage, copies, overlap, secrets, and what must not be claimed."""

import numpy as np
import pytest

from layerwise.data.groups import first_alike
from layerwise.kinds.audit import audit
from layerwise.kinds.opening import open_data
from layerwise.kinds.text import audit as audit_text
from layerwise.kinds.text.audit import copies, damage, luhn, overlap, private
from layerwise.kinds.text.documents import text_examples, texts_of

RNG = np.random.default_rng(0)
STARTS = ("ka", "lo", "mi", "ne", "su", "ta", "ri", "vo")
ENDS = ("bel", "dor", "fin", "gam", "hin", "jor", "kel", "lum", "nor", "pas")
WORDS = np.array([a + b for a in STARTS for b in ENDS])


def prose(n_words: int, rng: np.random.Generator = RNG) -> str:
    return " ".join(rng.choice(WORDS, n_words).tolist())


def group(texts: list[str]) -> list[int]:
    return copies(texts, first_alike(texts)).tolist()


def said(texts: list[str], kind: str) -> str:
    names = [f"row {i}" for i in range(len(texts))]
    found = damage(texts, names) + private(texts, names)
    return " ".join(f.message for f in found if kind in f.message or f.kind == kind)


# ---- damage --------------------------------------------------------------------------------------
def test_damaged_encodings():
    for text in ("café", "l’été “où", "Größe — 5 €", "naïve"):
        broken = text.encode().decode("cp1252")
        assert "1 of 2 texts hold characters of UTF-8 that was read" in said(
            [text, broken], "mojibake"
        )
    lost = said(["fine", "a lost \ufffd char"], "replacement")
    assert "(the first: 'a lost \ufffd char'): 'row 1'" in lost
    assert "1 of 1 texts hold control characters" in said(["bell\x07"], "control")
    for fine in (
        "café été naïve Größe",
        "São Paulo, Âge d'or",
        "a\tb\nc",
        "日本語 Ελληνικά",
        "Ã-la",
        "â!",
    ):
        assert not damage([fine], ["row"]), fine


# ---- secrets -------------------------------------------------------------------------------------
def test_secrets_are_named_and_never_shown():
    token = "ghp_" + "aB3" * 12
    for what, text in {
        "a GitHub token": f"use {token} here",
        "an AWS key": "AKIA" + "ABCD1234" * 2,
        "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMII",
        "an API key": "sk-proj-" + "x9" * 20,
        "a password": "password = 'hunter2!x'",
        "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl",
    }.items():
        assert f"1 of 2 texts hold what looks like {what}: 'row 1: " in said(
            ["plain", text], "secret"
        )
    (found,) = private([token], ["row 0"])
    assert token not in str(found)
    assert found.names == ("row 0: ghp_...B3 (40 characters)",)


def test_personal_data():
    for what, text in {
        "an email address": "write to ann.lee+x@mail.example.co.uk today",
        "a card number": "paid with 4111 1111 1111 1111 yesterday",
        "a phone number": "call +49 30 1234567 or later",
        "a social security number": "it is 078-05-1120.",
    }.items():
        assert f"what looks like {what}: 'row 0" in said([text], "personal"), text
    assert said(["(555) 123-4567"], "phone")
    assert said(["555-123-4567"], "phone")
    for fine in (
        "4111 1111 1111 1112",
        "3.14159265358979323846",
        "from 1999-2004",
        "10 000 000 people",
        "version 1.2.3.4",
        "@user #tag",
        "a@b",
        "ISBN 978-3-16-148410-0",
        "0000 0000 0000 0000",
    ):
        assert not private([fine], ["row"]), fine
    assert luhn("79927398713")
    assert not luhn("79927398710")


# ---- copies --------------------------------------------------------------------------------------
def test_near_copies_and_what_is_none():
    text = prose(80)
    words = text.split()
    changed = " ".join([*words[:40], "another", *words[41:]])
    half = " ".join(words[:40] + prose(40).split())
    assert group([text, changed, half, text.upper() + " !", prose(80)]) == [0, 0, 2, 0, 4]
    assert group(["Yes, I do.", "yes i do", "Yes, you do."]) == [0, 0, 2]
    assert group(["...", "", "!!!", ""]) == [0, 1, 2, 1]
    assert group([]) == []
    chinese = "春天来了，小河里的冰慢慢融化，孩子们在田野里放风筝，老人们坐在门前晒太阳。"
    assert group([chinese, chinese.replace("慢慢", "渐渐"), chinese[::-1]]) == [0, 0, 2]


def test_copies_are_found_as_often_as_they_agree():
    """Of pairs that share 85 % of their runs of words nearly all are found, below 70 % none."""
    found, texts = {}, []
    for changes in (3, 24):
        for _ in range(150):
            words = prose(150).split()
            texts.append(" ".join(words))
            for at in RNG.choice(150, changes, replace=False):
                words[at] = "changed" + str(at)
            texts.append(" ".join(words))
        groups = copies(texts, first_alike(texts))
        found[changes] = (groups[1::2] == groups[::2]).mean()
        texts = []
    assert found[3] > 0.99
    assert found[24] == 0


def test_ten_thousand_documents_are_not_compared_pair_by_pair(monkeypatch):
    texts = [prose(200) for _ in range(9000)]
    texts += [text.replace("kabel", "lodor", 1) for text in texts[:1000]]
    compared, jaccard = [], audit_text.jaccard
    monkeypatch.setattr(
        audit_text, "jaccard", lambda a, b: compared.append(len(a)) or jaccard(a, b)
    )
    groups = copies(texts, first_alike(texts))
    assert len(compared) < 3 * len(texts)  # of 50 million pairs
    assert (groups[9000:] == np.arange(1000)).mean() > 0.99
    assert (groups[:9000] == np.arange(9000)).all()


# ---- overlap -------------------------------------------------------------------------------------
def test_overlap_with_an_evaluation_set():
    training = [prose(300) for _ in range(20)]
    inside = " ".join(training[3].split()[100:140])
    evaluation = [prose(40), inside, inside[: len(inside) // 3] + " " + prose(60), "Two words"]
    found = overlap([*training, "two words!"], evaluation, ["q0", "q1", "q2", "q3"], "exam")
    assert found.names == ("q1", "q3")
    assert (
        "2 of 4 evaluation texts of 'exam' stand in training texts, so a score on them says "
        "little: 'q1', 'q3'" in found.message
    )
    assert overlap(training, [prose(50)], ["q"]) is None


# ---- through the audit ---------------------------------------------------------------------------
def test_the_audit_of_a_text_set(tmp_path):
    rows = [(f"{prose(12)}", "ab"[i % 2], "train") for i in range(40)]
    rows += [(rows[0][0], "b", "train"), (rows[1][0] + " !", "b", "test"), (prose(12), "a", "test")]
    rows += [
        ("???", "a", "train"),
        (prose(12), "b", "test"),
        ("mail me: a.b@example.com", "a", "train"),
    ]
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\tsplit\n" + "\n".join("\t".join(row) for row in rows), "utf-8")
    examples = open_data(path)
    report = audit(examples)
    kinds = {f.kind: f for f in report.findings}
    assert kinds["empty"].names == ("a.tsv row 45",)
    assert not report.keep[43]
    conflict = "2 rows, in 1 groups of copies, carry different labels: 'a.tsv row 2 (a)'"
    assert kinds["label_conflict"].message.startswith(conflict)
    leak = "1 of 3 test rows are also in train: 'a.tsv row 43 = a.tsv row 3'"
    assert kinds["leak"].message == leak
    assert report.clean_test.tolist() == [42, 44]
    assert "say nearly the same as another" in kinds["near_duplicate"].message
    assert kinds["personal"].names == ("a.tsv row 47: a.b@...om (15 characters)",)


def test_sentences_tagged_twice_differently():
    rows = [{"tokens": ["Rome", "sleeps"], "tags": tags} for tags in (["O", "O"], ["B-LOC", "O"])]
    names, given = ["line 1", "line 4"], np.array(["", ""])
    report = audit(text_examples("tagged", rows, names, given))
    said = "2 rows, of 1 sentences, carry different tags: 'line 1', 'line 4'"
    assert said in [f.message for f in report.findings]


@pytest.mark.data
def test_real_text(shared_data):
    news = open_data(shared_data / "text-classification/ag_news")
    kinds = {f.kind: f for f in audit(news).findings}
    assert "8 of" in kinds["leak"].message or len(kinds["leak"].names) >= 8  # as its README says
    tagged = open_data(shared_data / "ner-wnut17")
    assert "duplicate" in {f.kind for f in audit(tagged).findings}
    maths = open_data(shared_data / "math-gsm8k")
    asked = list(maths["prompt"])
    train, test = maths.given == "train", np.flatnonzero(maths.given == "test")
    held = [asked[i] for i in test]
    leaked = overlap([asked[i] for i in np.flatnonzero(train)], held, [str(i) for i in test])
    assert leaked is None or len(leaked.names) < 30
    assert texts_of(maths)[0].startswith(asked[0])


def test_marks_and_emoji_tell_texts_apart():
    days = [f"यह एक {word} है" for word in ("दिन", "दान", "दीन", "देन")]
    assert group(days) == [0, 1, 2, 3]
    assert group(["I like the 😀", "I like the 😡", "i like the 😀!"]) == [0, 1, 0]


@pytest.mark.timeout(120)
def test_long_runs_of_characters_are_searched_once():
    assert not said(["a" * 400_000 + "@"], "email")  # by squares it would be hours
