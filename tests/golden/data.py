"""Small data of every kind for the golden fits, made in code from seeds, the same in any clone.

A maker writes its files into the folder it is given and returns the data to fit and a few new rows
that the model is asked about afterwards.
"""

import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

NEW = 8  # rows that a fitted model is asked about


@dataclass(frozen=True)
class Made:
    """Data to fit, and new rows as `predict` takes them (a prompt, for a model that continues)."""

    data: pathlib.Path
    new: Any


def write_rows(path: pathlib.Path, head: list[str], rows: list[Any], mark: str = ",") -> str:
    """A table of text with a header; the path, as `predict` takes it."""
    lines = [mark.join(map(str, row)) for row in [head, *rows]]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


# ---- images --------------------------------------------------------------------------------------
def digits(folder: pathlib.Path, n: int = 500) -> Made:
    """The first of scikit-learn's scanned digits as arrays."""
    found: Any = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    np.savez(folder / "digits.npz", images=images[:n], labels=found.target[:n])
    (folder / "new").mkdir()
    for i, image in enumerate(images[n : n + NEW]):
        Image.fromarray(image).save(folder / "new" / f"{i}.png")
    return Made(folder / "digits.npz", str(folder / "new"))


def few_digits(folder: pathlib.Path) -> Made:
    return digits(folder, 300)


SCENES = ("brick", "leaf", "sky")


def scene(kind: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A picture of one of `SCENES`, `side` pixels high and a little wider or narrower."""
    size = (side + int(rng.integers(-6, 7)), side)
    ground = {"brick": (150, 70, 50), "leaf": (50, 110, 40), "sky": (90, 140, 210)}[kind]
    image = Image.new("RGB", size, tuple(int(c + rng.integers(-20, 21)) for c in ground))
    draw = ImageDraw.Draw(image)
    for i in range(0, side, max(4, side // 8)):
        tone = int(rng.integers(0, 60))
        x, y = (int(v) for v in rng.integers(0, side, 2))
        if kind == "brick":
            draw.line((0, i, size[0], i), fill=(200, 180, 160 + tone), width=2)
            draw.line((x, i, x, i + side // 8), fill=(200, 180, 160 + tone), width=2)
        elif kind == "leaf":
            draw.line((x, y, x + side // 5, y + side // 3), fill=(90, 150 + tone, 60), width=3)
        else:
            draw.ellipse((x, y, x + side // 4, y + side // 6), fill=(220, 225, 190 + tone))
    noise = rng.integers(-12, 13, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def photographs(folder: pathlib.Path, n_train: int = 20, n_test: int = 8, side: int = 80) -> Made:
    """A folder for each class in folders train and test, as JPEG and PNG.

    One lies there twice, and some in the folder of another class, for the audit and the ladder.
    """
    rng = np.random.default_rng(1)
    for split, n in (("train", n_train), ("test", n_test)):
        for kind in SCENES:
            place = folder / "photos" / split / kind
            place.mkdir(parents=True)
            for i in range(n):
                shown = kind if i % 4 != 1 else SCENES[int(rng.integers(3))]
                scene(shown, side, rng).save(place / f"{i:02d}.{'png' if i % 4 == 0 else 'jpg'}")
    train = folder / "photos" / "train" / "sky"
    (train / "again.png").write_bytes((train / "00.png").read_bytes())
    return Made(folder / "photos", new_scenes(folder, side, rng))


def new_scenes(folder: pathlib.Path, side: int, rng: np.random.Generator) -> str:
    (folder / "new").mkdir()
    for i in range(NEW):
        scene(SCENES[i % 3], side, rng).save(folder / "new" / f"{i}.png")
    return str(folder / "new")


def scenes_by_a_table(folder: pathlib.Path, n: int = 160, side: int = 32) -> Made:
    """Images beside a metadata.csv that names each file and its label."""
    rng, place, rows = np.random.default_rng(2), folder / "scenes", []
    place.mkdir()
    for i in range(n):
        kind = SCENES[i % 3] if rng.random() > 0.3 else str(rng.choice(SCENES))  # some are wrong
        scene(SCENES[i % 3], side, rng).save(place / f"{i:03d}.png")
        rows.append((f"{i:03d}.png", kind))
    write_rows(place / "metadata.csv", ["file_name", "label"], rows)
    return Made(place, new_scenes(folder, side, rng))


SHAPES = {"disc": (210, 60, 60), "square": (60, 190, 80), "stripe": (70, 90, 220)}


def shapes(folder: pathlib.Path, n: int = 120, side: int = 24) -> Made:
    """Images with any number of shapes, which metadata.csv lists."""
    rng, place, rows = np.random.default_rng(3), folder / "shapes", []
    place.mkdir()
    (folder / "new").mkdir()
    for i in range(n + NEW):
        there = [name for name in SHAPES if rng.random() < 0.45] or ["disc"]
        image = Image.new("RGB", (side, side), (240, 240, 235))
        draw = ImageDraw.Draw(image)
        for name in there:
            x, y = (int(v) for v in rng.integers(0, side - 8, 2))
            box = (x, y, x + 7, y + 7) if name != "stripe" else (0, y, side, y + 2)
            (draw.ellipse if name == "disc" else draw.rectangle)(box, fill=SHAPES[name])
        image.save((place if i < n else folder / "new") / f"{i:03d}.png")
        rows.append((f"{i:03d}.png", ";".join(there)))
    write_rows(place / "metadata.csv", ["file_name", "tags"], rows[:n])
    return Made(place, str(folder / "new"))


# ---- tables --------------------------------------------------------------------------------------
def flowers(folder: pathlib.Path, n: int = 300) -> Made:
    """Three classes by four lengths, some cells missing, some rows twice."""
    rng, rows = np.random.default_rng(4), []
    for i in range(n + NEW):
        centre = np.array([[5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.5, 2.0]])[i % 3]
        cells = [f"{v:.1f}" if rng.random() > 0.04 else "" for v in centre + rng.normal(0, 0.5, 4)]
        rows.append([*cells, ("low", "middle", "tall")[i % 3]])
    rows[17:19] = rows[14:16]
    head = ["sepal length", "sepal width", "petal length", "petal width", "species"]
    new = write_rows(folder / "new.csv", head[:-1], [row[:-1] for row in rows[n:]])
    return Made(pathlib.Path(write_rows(folder / "flowers.csv", head, rows[:n])), new)


def orders(folder: pathlib.Path, n: int = 300) -> Made:
    """Dates, categories, missing cells and several labels for each row."""
    rng, rows = np.random.default_rng(5), []
    for _ in range(n + NEW):
        day = np.datetime64("2021-01-04") + int(rng.integers(0, 700))
        amount, shop = rng.lognormal(3, 1), str(rng.choice(["north", "south", "web"]))
        weekend = (day.astype(int) + 3) % 7 >= 5
        chosen = {"large": amount > 30, "remote": shop == "web", "weekend": weekend}
        tags = ";".join(name for name, there in chosen.items() if there) or "usual"
        rows.append([day, shop if rng.random() > 0.1 else "", f"{amount:.2f}", "", tags])
    head = ["ordered", "shop", "amount", "remark", "tags"]
    new = write_rows(folder / "new.csv", head[:-1], [row[:-1] for row in rows[n:]])
    return Made(pathlib.Path(write_rows(folder / "orders.csv", head, rows[:n])), new)


def houses(folder: pathlib.Path, n: int = 300) -> Made:
    """A price by size, colour and year."""
    rng, rows = np.random.default_rng(6), []
    for _ in range(n + NEW):
        size, colour, year = rng.uniform(2, 10), str(rng.choice(["red", "blue"])), rng.integers(60)
        price = 3 * size + 8 * (colour == "red") - 0.1 * year + rng.normal(0, 0.5)
        cells = [f"{size:.3f}", colour if rng.random() > 0.1 else "", 1960 + year, f"{price:.3f}"]
        rows.append(cells)
    head = ["size", "colour", "built", "price"]
    new = write_rows(folder / "new.csv", head[:-1], [row[:-1] for row in rows[n:]])
    return Made(pathlib.Path(write_rows(folder / "houses.csv", head, rows[:n])), new)


# ---- texts ---------------------------------------------------------------------------------------
WHO = ["the cat", "a small dog", "the old captain", "my sister", "one sailor", "the north wind"]
DID = ["crossed", "watched", "followed", "found", "painted", "forgot"]
WHAT = ["the river", "a red boat", "the quiet harbour", "every star", "an empty house"]
WHEN = ["at noon", "before the storm", "in winter", "once again", "without a word"]


def sentence(rng: np.random.Generator) -> str:
    who, did, what = (str(rng.choice(words)) for words in (WHO, DID, WHAT))
    said = f"{who} {did} {what}"
    said += f" {rng.choice(WHEN)}" if rng.random() < 0.6 else ""
    said += f" and {rng.choice(DID)} {rng.choice(WHAT)}" if rng.random() < 0.3 else ""
    return said[0].upper() + said[1:] + "."


def book(folder: pathlib.Path, n: int = 1200, seed: int = 7) -> Made:
    """One plain text."""
    rng = np.random.default_rng(seed)
    text = "".join(sentence(rng) + ("\n\n" if i % 6 == 5 else " ") for i in range(n))
    (folder / "book.txt").write_text(text)
    return Made(folder / "book.txt", "The old captain watched")


def tales(folder: pathlib.Path, n: int = 30) -> Made:
    """A folder of plain texts, which are divided among each other."""
    rng, place = np.random.default_rng(8), folder / "tales"
    place.mkdir()
    for i in range(n):
        (place / f"{i:02d}.txt").write_text(" ".join(sentence(rng) for _ in range(30)) + "\n")
    return Made(place, None)


MOODS = {
    "calm": ["rested by the water", "slept in the shade", "smiled at the sea"],
    "glad": ["sang a bright song", "danced on the pier", "laughed all day"],
    "grim": ["feared the long night", "lost the last rope", "cursed the cold rain"],
}


def mood(label: str, rng: np.random.Generator) -> str:
    parts = [f"{rng.choice(WHO)} {rng.choice(MOODS[label])}" for _ in range(rng.integers(1, 4))]
    return " and ".join(parts)


def moods(folder: pathlib.Path, n: int = 240, wrong: float = 0.0) -> Made:
    """A text and its label on each line; wrong: share of labels that are drawn at random."""
    rng, rows = np.random.default_rng(9), []
    for i in range(n):
        label = list(MOODS)[i % 3]
        said = label if rng.random() >= wrong else str(rng.choice(list(MOODS)))
        rows.append((f"{mood(label, rng)} {i}", said))
    new = [mood(list(MOODS)[i % 3], rng) for i in range(NEW)]
    return Made(pathlib.Path(write_rows(folder / "moods.tsv", ["text", "label"], rows, "\t")), new)


def doubtful_moods(folder: pathlib.Path) -> Made:
    return moods(folder, wrong=0.2)  # so that no way is perfect


def pairs_with_a_label(folder: pathlib.Path, n: int = 240) -> Made:
    """Whether the second text follows from the first."""
    rng, rows = np.random.default_rng(10), []
    for i in range(n + NEW):
        a = list(MOODS)[int(rng.integers(3))]
        b = a if i % 2 else str(rng.choice([m for m in MOODS if m != a]))
        said = "entailment" if i % 2 else "contradiction"
        rows.append((mood(a, rng), mood(b, rng), said))
    head = ["premise", "hypothesis", "label"]
    new = write_rows(folder / "new.tsv", head[:-1], [row[:-1] for row in rows[n:]], "\t")
    return Made(pathlib.Path(write_rows(folder / "nli.tsv", head, rows[:n], "\t")), new)


PEOPLE, PLACES = ["Anna", "Bela", "Cem", "Dora", "Emil"], ["Rome", "Oslo", "Bonn", "Lower Saxony"]


def tagged_words(folder: pathlib.Path, n: int = 200) -> Made:
    """Words with the names of people and places tagged, in CoNLL's columns."""
    rng, blocks = np.random.default_rng(11), []
    for _ in range(n + NEW):
        who, to = (str(rng.choice(PEOPLE)) for _ in range(2))
        before = [(str(w), "O") for w in rng.choice(["so", "then", "once"], rng.integers(3))]
        place = str(rng.choice(PLACES)).split()
        verb = str(rng.choice(["saw", "met", "left"]))
        words = [*before, (who, "B-PER"), (verb, "O"), (to, "B-PER"), ("in", "O"),
                 *zip(place, ["B-LOC", "I-LOC"], strict=False), (".", "O")]  # fmt: skip
        blocks.append(words)
    text = "\n\n".join("\n".join(f"{w}\t{t}" for w, t in words) for words in blocks[:n])
    (folder / "names.conll").write_text(text + "\n\n")
    new = [" ".join(word for word, _ in words) for words in blocks[n:]]
    return Made(folder / "names.conll", new)


def questions(folder: pathlib.Path, n: int = 100) -> Made:
    """Questions about short contexts in the layout of SQuAD, some without an answer."""
    rng, paragraphs, new = np.random.default_rng(12), [], []
    for i in range(n + NEW):
        names, places = rng.permutation(PEOPLE)[:3], rng.permutation(PLACES)[:3]
        said = [f"{who} lives in {where} ." for who, where in zip(names, places, strict=True)]
        context, ask = f"Page {i} . " + " ".join(said), f"Where does {names[1]} live ?"
        answer = {"text": str(places[1]), "answer_start": context.index(f"in {places[1]} .") + 3}
        answers = [answer] if i % 5 else []
        row = {"id": str(i), "question": ask, "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": context, "qas": [row]})
        new.append({"question": ask, "context": context})
    whole = {"version": "v2.0", "data": [{"title": "people", "paragraphs": paragraphs[:n]}]}
    (folder / "asked.json").write_text(json.dumps(whole))
    return Made(folder / "asked.json", new[n:])


def matching_pairs(folder: pathlib.Path, n: int = 200) -> Made:
    """Texts that match, one of them said another way."""
    rng, lines = np.random.default_rng(13), []
    for i in range(n):
        who, did, what = WHO[i % 6], DID[i // 6 % 6], WHAT[i % 5]
        a, b = f"{who} {did} {what} {i}", f"{what} was {did} by {who} {rng.choice(WHEN)} {i}"
        lines.append(json.dumps({"anchor": a, "positive": b}))
    (folder / "matches.jsonl").write_text("\n".join(lines) + "\n")
    return Made(folder / "matches.jsonl", [f"{WHO[i % 6]} {DID[i % 6]}" for i in range(NEW)])


def scored_pairs(folder: pathlib.Path, n: int = 200) -> Made:
    """How alike two texts are, from 0 to 5."""
    rng, rows = np.random.default_rng(14), []
    for i in range(n):
        who, did = WHO[i % 6], DID[i // 6 % 6]
        same = int(rng.integers(0, 3))
        other = who if same else WHO[(i + 1) % 6]
        did_too = did if same > 1 else DID[(i + 2) % 6]
        score = f"{2.2 * same + rng.uniform(0, 0.6):.2f}"
        rows.append((f"{who} {did} {WHAT[i % 5]}", f"{other} {did_too} {WHAT[i % 5]} {i}", score))
    head = ["sentence1", "sentence2", "score"]
    path = write_rows(folder / "alike.tsv", head, rows, "\t")
    return Made(pathlib.Path(path), [f"{WHO[i % 6]} {DID[i % 6]}" for i in range(NEW)])
