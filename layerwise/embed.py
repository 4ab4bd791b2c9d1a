"""`embed` and `search`: vectors of texts and images, kept with what they are of; the nearest ones.

A text's vector is what its network says ("embed" heads), else the mean over its positions; an
image's is what comes before the head. Search is exact: one product of matrices.

Legend: n texts or images, q queries, D width.
"""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layerwise import runtime
from layerwise.adapt.packed import PackedBert
from layerwise.bundle import Model
from layerwise.data.each_processor import FORMS, texts_of
from layerwise.data.examples import Examples
from layerwise.data.open import open_data
from layerwise.data.text_documents import texts_of as joined_texts
from layerwise.data.words import some as first_of
from layerwise.errors import DataError, OptionError
from layerwise.evaluate import as_model
from layerwise.ladder import features_of
from layerwise.layers.pool import pool
from layerwise.storage import replacing

AT_ONCE = 10_000  # texts that are tokenised and sorted by length together
BATCH = 64
SUFFIXES = (".npz", ".npy", ".parquet")
SEVERAL = {len(form): form for form in FORMS}
Progress = Callable[[int, int], None]


class Embedder:
    """A model ready to make vectors; keep it to embed more than once.

    dtype: "auto" computes in bf16 where the machine has it; cosines then stay within 0.002.
    """

    def __init__(self, model: Model | str | pathlib.Path, dtype: str = "auto", threads: int = 0):
        self.model = as_model(model)
        self.machine = runtime.start(dtype=dtype, threads=threads)
        self.packed: PackedBert | None = None
        if self.model.kind == "text":
            self.tokenizer = self.model.processor.tokenizer
            self.longest: int = self.model.processor.max_seq_len
            if self.model.family == "bert" and self.machine.device == "cpu":
                self.packed = PackedBert(self.model.network, self.machine.dtype)  # type: ignore[arg-type]
        self.n_full = 0  # texts of the last call that are as long as is read, or were cut to it

    def __call__(
        self, inputs: Sequence[Any], progress: Progress | None = None, normalise: bool | None = None
    ) -> np.ndarray:
        """Texts, or images as paths or pixels, to (n, D) float32.

        normalise: to length 1; None as the model does. Errors: DataError for a text that is empty.
        """
        self.n_full = 0
        if self.model.kind == "text":
            parts = list(self.of_texts(list(inputs), progress))
            found = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        elif self.model.kind == "image":
            found = features_of(self.model, as_images(inputs), self.machine)
        else:
            raise DataError(f"{self.model.kind}s have no vectors; texts and images do")
        own = bool(getattr(self.model.network.config, "normalise", False))
        return unit(found) if (own if normalise is None else normalise) else found

    def of_texts(self, texts: list[str], progress: Progress | None) -> Iterator[np.ndarray]:
        empty = [f"text {i + 1}" for i, text in enumerate(texts) if not str(text).strip()]
        if empty:
            raise DataError(f"{first_of(empty)}: nothing to embed, only blanks; leave them out")
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            ids = [np.array(x) for x in self.tokenizer.encode_batch(some, max_length=self.longest)]
            self.n_full += sum(len(row) >= self.longest for row in ids)
            yield self.packed(ids) if self.packed else self.padded(ids)
            if progress:
                progress(min(start + AT_ONCE, len(texts)), len(texts))

    def padded(self, ids: list[np.ndarray]) -> np.ndarray:
        """As the packed network, for other families and processors."""
        network: Any = self.model.network.to(self.machine.device)
        found: list[np.ndarray] = [np.empty(0)] * len(ids)
        order = np.argsort([len(row) for row in ids], kind="stable")
        with runtime.evaluating(network), self.machine.autocast():
            for start in range(0, len(ids), BATCH):
                rows = order[start : start + BATCH]
                tokens, mask = self.tokenizer.pad([ids[i] for i in rows])
                tokens = tokens.to(self.machine.device)
                mask = None if mask is None else mask.to(self.machine.device)
                bert = self.model.family == "bert"  # the others look back only: padding is behind
                features = network.features(tokens, **({"mask": mask} if bert else {}))
                how = getattr(network.config, "pooling", "mean")
                vectors = pool(features, mask, how, normalise=False).cpu().numpy()
                for i, vector in zip(rows, vectors, strict=True):
                    found[i] = vector
        return np.stack(found)


def unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def as_images(inputs: Sequence[Any]) -> Examples:
    names = [
        str(x) if isinstance(x, str | pathlib.Path) else f"image {i}" for i, x in enumerate(inputs)
    ]
    paths = [pathlib.Path(x) if isinstance(x, str) else x for x in inputs]
    given = np.full(len(names), "", "U5")
    return Examples("image", paths, None, "none", (), names, given, "images")


# ---- what is embedded ----------------------------------------------------------------------------
def things_in(data: Any, kind: str) -> tuple[Sequence[Any], list[str]]:
    """What to embed, and what to call each: of a list its items, of files what lies in them.

    Rows of several texts give each of them; plain text its paragraphs, or its lines where no line
    is blank. Errors: DataError for data of another kind than the model reads.
    """
    if isinstance(data, list | tuple | np.ndarray):
        return data, [f"{kind} {i + 1}" for i in range(len(data))]  # type: ignore[return-value]
    rows = data if isinstance(data, Examples) else open_data(data, kind=kind, learn=False)  # type: ignore[arg-type]
    if rows.kind != kind:
        raise DataError(f"this model reads {kind}s, but {rows.source} holds {rows.kind}s")
    if kind == "image":
        return rows.inputs, list(rows.names)
    if rows.form == "plain":
        found = [
            p
            for row, name in zip(rows.inputs, rows.names, strict=True)
            for p in passages(row["text"], name)
        ]
    elif rows.form in ("labelled", "pairs", "scored_pairs", "triples"):
        found = []
        for row, name in zip(rows.inputs, rows.names, strict=True):
            texts = texts_of(row)
            fields = [f" {f}" for f in SEVERAL[len(texts)]] if len(texts) > 1 else [""]
            found += [(text, name + f) for text, f in zip(texts, fields, strict=True)]
    else:
        found = list(zip(joined_texts(rows), rows.names, strict=True))
    return [text for text, _ in found], [name for _, name in found]


def passages(text: str, name: str) -> list[tuple[str, str]]:
    blank = re.compile(r"\n[ \t]*\n")
    what = "paragraph" if blank.search(text) else "line"
    parts = [p.strip() for p in (blank.split(text) if what == "paragraph" else text.split("\n"))]
    kept = [(p, f"{name} {what} {i}") for i, p in enumerate(parts, 1) if p]
    return kept if len(kept) > 1 else [(p, name) for p, _ in kept]


# ---- kept and searched ---------------------------------------------------------------------------
@dataclass
class Hit:
    """One of the nearest: its cosine, which row it is, what it is called and what it says."""

    score: float
    row: int
    name: str
    text: str


@dataclass
class Index:
    """Vectors (n, D) with what they are of, and the model that made them (a path or name)."""

    vectors: np.ndarray
    names: list[str]
    texts: list[str]
    model: str
    embedder: Embedder | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: Any, data: Any, **options: Any) -> "Index":
        """Embed `data` (a path, a list of texts or images, or Examples). options: of `embed`."""
        embedder = model if isinstance(model, Embedder) else Embedder(model)
        things, names = things_in(data, embedder.model.kind)
        vectors = embed(embedder, list(things), **options)
        texts = list(things) if embedder.model.kind == "text" else [""] * len(names)
        source = "" if isinstance(model, Model | Embedder) else str(model)
        here = pathlib.Path(source)
        source = str(here.resolve()) if source and here.exists() else source
        return cls(vectors, names, texts, source, embedder)

    def search(self, queries: Any, top: int = 5, model: Any = "") -> list[list[Hit]]:
        """The nearest by cosine, the best first, for each query (a text or image, or several).

        model: what embeds the queries, where it is no longer where it was.
        """
        one = isinstance(queries, str | pathlib.Path)
        if top < 1:
            raise OptionError(f"--top is 1 or more; {top} was given")
        if self.embedder is None or model:
            if not (model or self.model):
                raise OptionError("this index does not know its model: name it with --model")
            self.embedder = Embedder(model or self.model)
        asked = self.embedder([queries] if one else list(queries))[:, : self.vectors.shape[1]]
        if asked.shape[1] != self.vectors.shape[1]:
            raise DataError(
                f"the model gives {asked.shape[1]} numbers, the index holds {self.vectors.shape[1]}"
                ": it was made by another model; embed the data again"
            )
        near = unit(asked) @ unit(self.vectors).T  # (q, n)
        best = np.argsort(-near, axis=1, kind="stable")[:, :top]
        return [
            [Hit(float(scores[i]), int(i), self.names[i], self.texts[i]) for i in rows]
            for scores, rows in zip(near, best, strict=True)
        ]

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """As .npz, .parquet (a row each), or .npy (vectors alone), by the suffix."""
        path = checked(path)
        with replacing(path) as partial, partial.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, self.vectors)
            elif path.suffix == ".npz":
                words = {k: np.array(getattr(self, k)) for k in ("names", "texts", "model")}
                np.savez(file, vectors=self.vectors, **words)
            else:
                vectors = pa.FixedSizeListArray.from_arrays(
                    self.vectors.ravel(), self.vectors.shape[1]
                )
                columns = {"name": self.names, "text": self.texts, "vector": vectors}
                pq.write_table(pa.table(columns, metadata={"model": self.model}), file)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Index":
        """Errors: DataError for a file that is missing, damaged, or holds vectors alone."""
        path = checked(path)
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as held:
                    words = [held[k].tolist() for k in ("names", "texts", "model")]
                    return cls(held["vectors"], *words)
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                vectors = np.stack(table["vector"].to_numpy())
                said = (table.schema.metadata or {}).get(b"model", b"").decode()
                return cls(vectors, table["name"].to_pylist(), table["text"].to_pylist(), said)
        except (OSError, ValueError, KeyError, pa.ArrowException) as e:
            raise DataError(f"{path} is no index that `layerwise embed` wrote ({e})") from e
        raise DataError(
            f"{path} holds vectors alone, without texts and model; write the index as .npz or "
            ".parquet: `layerwise embed MODEL DATA --output index.npz`"
        )


def checked(path: str | pathlib.Path) -> pathlib.Path:
    if (path := pathlib.Path(path)).suffix not in SUFFIXES:
        raise OptionError(f"an index is a file of {', '.join(SUFFIXES)}; '{path}' was given")
    return path


# ---- the verbs --------------------------------------------------------------------------------
def embed(
    model: Any,
    data: Any,
    normalise: bool | None = None,
    dims: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Vectors of texts or images: (n, D) float32.

    model: a path, a name, a loaded model, or an `Embedder`. data: a list of texts (or of images),
    a path to files of them, or Examples. normalise: to length 1, None as the model does. dims:
    only so many numbers of each, from the front (Matryoshka); 0 for all.
    Errors: DataError for empty texts and data of another kind.
    """
    embedder = model if isinstance(model, Embedder) else Embedder(model)
    things, _ = things_in(data, embedder.model.kind)
    vectors = embedder(things, progress, normalise)
    if not dims:
        return vectors
    if not 0 < dims <= vectors.shape[1]:
        raise OptionError(f"--dims {dims}: the vectors have {vectors.shape[1]} numbers")
    own = bool(getattr(embedder.model.network.config, "normalise", False))
    cut = np.ascontiguousarray(vectors[:, :dims])
    return unit(cut) if (own if normalise is None else normalise) else cut


def search(index: Any, queries: Any, top: int = 5, model: Any = "") -> list[list[Hit]]:
    """The nearest rows of an index for each query; see `Index.search`."""
    index = index if isinstance(index, Index) else Index.load(index)
    return index.search(queries, top, model)
