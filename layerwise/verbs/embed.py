"""`embed` and `search`: vectors of texts and images, kept with what they are of; the nearest ones.

A text's vector is what its network says ("embed" heads), else the mean over its positions; an
image's is what comes before the head. Search is exact: one product of matrices.

Legend: n texts or images, q queries, D width.
"""

import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layerwise import kinds, runtime
from layerwise.adapt.packed import PackedBert
from layerwise.data.examples import Examples, listed
from layerwise.data.naming import some
from layerwise.errors import DataError, OptionError
from layerwise.fitting.probes import features_of
from layerwise.kinds.contract import Kind
from layerwise.kinds.opening import open_data
from layerwise.layers.pool import pool
from layerwise.model.evaluation import Named, as_model
from layerwise.model.model import Data, Model
from layerwise.models.bert import Bert
from layerwise.models.network import reads_tokens
from layerwise.storage import replacing

AT_ONCE = 10_000  # texts that are tokenised and sorted by length together
BATCH = 64
WORDS = ("names", "texts", "model", "width")  # beside the vectors in a .npz
SUFFIXES = (".npz", ".npy", ".parquet")
Place = str | pathlib.Path


class Embedder:
    """A model ready to make vectors; keep it to embed more than once.

    dtype: "auto" computes in bf16 where the machine has it. progress: called with (texts done,
    texts). `n_full`: how many texts of the last call fill the context, or exceed it.
    """

    def __init__(
        self,
        model: Named,
        dtype: str = "auto",
        threads: int = 0,
        progress: Callable[[int, int], None] = lambda done, n: None,
    ):
        self.model, self.progress, self.n_full = as_model(model), progress, 0
        self.machine = runtime.start(dtype=dtype, threads=threads)
        self.packed: PackedBert | None = None
        if isinstance(self.model.network, Bert) and self.machine.device == "cpu":
            self.packed = PackedBert(self.model.network, self.machine.dtype)

    @property
    def longest(self) -> int:
        """Tokens of a text that are read."""
        return self.model.processor.max_seq_len

    def __call__(self, inputs: Sequence[Any], normalise: bool | None = None) -> np.ndarray:
        """Texts, or images as paths or pixels, to (n, D) float32.

        normalise: to length 1; None as the model does. Errors: DataError for a text that is empty.
        """
        kind, network = self.model.kind, self.model.network
        if reads_tokens(network):
            found = self.of_texts(list(inputs))
        elif kind.has_vectors:
            rows = kind.of_values(list(inputs))
            found = features_of(self.model, rows, self.model.answers(), self.machine)
        else:
            raise DataError(f"{kind.noun} have no vectors; texts and images do")
        return unit(found) if (network.unit_vectors if normalise is None else normalise) else found

    def of_texts(self, texts: list[str]) -> np.ndarray:
        empty = [f"text {i + 1}" for i, text in enumerate(texts) if not str(text).strip()]
        if empty:
            raise DataError(f"{some(empty)}: nothing to embed, only blanks; leave them out")
        tokenizer, longest = self.model.tokenizer, self.longest
        self.n_full, parts = 0, [np.empty((0, self.model.network.config.dim), np.float32)]
        for start in range(0, len(texts), AT_ONCE):
            stretch = texts[start : start + AT_ONCE]
            ids = [np.array(row) for row in tokenizer.encode_batch(stretch, max_length=longest)]
            self.n_full += sum(len(row) >= longest for row in ids)
            parts.append(self.packed(ids) if self.packed else self.padded(ids))
            self.progress(start + len(stretch), len(texts))
        return np.concatenate(parts)

    def padded(self, ids: list[np.ndarray]) -> np.ndarray:
        """As the packed network, for other families and processors."""
        network = self.model.network.to(self.machine.device)
        looks_back = "causal" in network.HEADS  # what is behind a token, padding too, is not seen
        order, parts = np.argsort([len(row) for row in ids], kind="stable"), []
        with runtime.evaluating(network), self.machine.autocast():
            for start in range(0, len(ids), BATCH):
                rows = [ids[i] for i in order[start : start + BATCH]]
                tokens, mask = self.model.tokenizer.pad(rows, self.longest)
                mask = None if mask is None else mask.to(self.machine.device)
                seen = {} if looks_back else {"mask": mask}
                features = network.features(tokens.to(self.machine.device), **seen)
                how = "mean" if looks_back else network.config.pooling
                parts.append(pool(features, mask, how, normalise=False).cpu().numpy())
        return np.concatenate(parts)[np.argsort(order)]


def unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


# ---- what is embedded ----------------------------------------------------------------------------
def things_in(data: Data, kind: Kind) -> tuple[Sequence[Any], list[str]]:
    """What to embed, and what to call each: of a list its items, of files what lies in them.

    Rows of several texts give each of them; plain text its paragraphs, or its lines where no line
    is blank. Errors: DataError for data of another kind than the model reads.
    """
    if not isinstance(data, Place | Examples):
        return data, [f"{kind.noun[:-1]} {i + 1}" for i in range(len(data))]
    given = isinstance(data, Examples)
    rows = data if given else open_data(data, kind=kind.name, learn=False)
    if kind.name not in rows.kinds.values():
        holds = f"{rows.source} holds {kinds.of(rows).noun}"
        raise DataError(f"this model reads {kind.noun}, but {holds}")
    fields = list(rows.of_kind(kind.name).values())
    if len(fields) == 1 and not rows.has("text"):
        return fields[0], list(rows.names)
    documents = rows.has("text") and rows.targets is None
    parts = passages if documents else lambda text: [(text, "")]
    found = [
        (part, name + (f" text {k}" if len(texts) > 1 else "") + where)
        for name, texts in zip(rows.names, zip(*map(listed, fields), strict=True), strict=True)
        for k, text in enumerate(texts, 1)
        for part, where in parts(text)
    ]
    return [text for text, _ in found], [name for _, name in found]


def passages(text: str) -> list[tuple[str, str]]:
    """The parts of a document, and where in it each stands."""
    blank = r"\n[ \t]*\n"
    what, ends = ("paragraph", blank) if re.search(blank, text.strip()) else ("line", "\n")
    parts = [part.strip() for part in re.split(ends, text.strip())]
    where = [f" {what} {i}" if len(parts) > 1 else "" for i in range(1, len(parts) + 1)]
    return [(part, w) for part, w in zip(parts, where, strict=True) if part]


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
    """Vectors (n, D) with what they are of, and the model that made them: a path or name, and of
    how many numbers its vectors are, where less are kept."""

    vectors: np.ndarray
    names: list[str]
    texts: list[str]
    model: str
    width: int
    embedder: Embedder | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: Named | Embedder, data: Any, **options: Any) -> "Index":
        """Embed `data` (a path, a list of texts or images, or Examples). options: of `embed`."""
        embedder = model if isinstance(model, Embedder) else Embedder(model)
        things, names = things_in(data, embedder.model.kind)
        width = embedder(list(things)[:1]).shape[1]
        vectors = embed(embedder, list(things), **options)
        texts = [thing if isinstance(thing, str) else "" for thing in things]
        source = "" if isinstance(model, Model | Embedder) else str(model)
        here = pathlib.Path(source)
        source = str(here.resolve()) if source and here.exists() else source
        return cls(vectors, names, texts, source, width, embedder)

    def search(
        self, queries: Place | Sequence[Any], top: int = 5, model: Named = ""
    ) -> list[list[Hit]]:
        """The nearest by cosine, the best first, for each query (a text or image, or several).

        model: what embeds the queries, where the index's own has moved.
        """
        one = isinstance(queries, Place)
        if top < 1:
            raise OptionError(f"--top is 1 or more; {top} was given")
        if self.embedder is None or model:
            if not (model or self.model):
                raise OptionError("this index does not know its model: name it with --model")
            self.embedder = Embedder(model or self.model)
        asked = self.embedder([queries] if one else list(queries))
        if asked.shape[1] != self.width:
            both = f"{asked.shape[1]} numbers, that of the index gave {self.width}"
            raise DataError(f"the model gives {both}: it is another one; embed the data again")
        near = unit(asked[:, : self.vectors.shape[1]]) @ unit(self.vectors).T  # (q, n)
        best = np.argsort(-near, axis=1, kind="stable")[:, :top]
        return [
            [Hit(float(scores[i]), int(i), self.names[i], self.texts[i]) for i in rows]
            for scores, rows in zip(near, best, strict=True)
        ]

    def save(self, path: Place) -> pathlib.Path:
        """As .npz, .parquet (a row each), or .npy (vectors alone), by the suffix."""
        path = checked(path)
        with replacing(path) as partial, partial.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, self.vectors)
            elif path.suffix == ".npz":
                words = {k: np.array(vars(self)[k]) for k in WORDS}
                np.savez(file, vectors=self.vectors, **words)  # type: ignore[arg-type]
            else:
                flat, width = self.vectors.ravel(), self.vectors.shape[1]
                vectors = pa.FixedSizeListArray.from_arrays(flat, width)
                said = {"model": self.model, "width": str(self.width)}
                columns = {"name": self.names, "text": self.texts, "vector": vectors}
                pq.write_table(pa.table(columns, metadata=said), file)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, path: Place) -> "Index":
        """Errors: DataError for a file that is missing, damaged, or holds vectors alone."""
        path = checked(path)
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as held:
                    return cls(held["vectors"], *(held[k].tolist() for k in WORDS))
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                vectors = np.stack(table["vector"].to_numpy())
                names, texts = table["name"].to_pylist(), table["text"].to_pylist()
                said = table.schema.metadata or {}
                return cls(vectors, names, texts, said[b"model"].decode(), int(said[b"width"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, pa.ArrowException) as e:
            raise DataError(f"{path} is not an index that `layerwise embed` wrote ({e})") from e
        cure = "write it as .npz or .parquet: `layerwise embed MODEL DATA --output index.npz`"
        raise DataError(f"{path} holds vectors alone, without texts and model; {cure}")


def checked(path: Place) -> pathlib.Path:
    if (path := pathlib.Path(path)).suffix not in SUFFIXES:
        raise OptionError(f"an index is a file of {', '.join(SUFFIXES)}; '{path}' was given")
    return path


Embeds = Named | Embedder


# ---- the verbs --------------------------------------------------------------------------------
def embed(model: Embeds, data: Data, normalise: bool | None = None, dims: int = 0) -> np.ndarray:
    """Vectors of texts or images: (n, D) float32.

    model: a path, a name, a loaded model, or an `Embedder`. data: a list of texts (or of images),
    a path to files of them, or Examples. normalise: to length 1, None as the model does. dims:
    only so many numbers of each, from the front (Matryoshka); 0 for all.
    Errors: DataError for empty texts and data of another kind.
    """
    embedder = model if isinstance(model, Embedder) else Embedder(model)
    things, _ = things_in(data, embedder.model.kind)
    vectors = embedder(things, normalise)
    if not dims:
        return vectors
    if not 0 < dims <= vectors.shape[1]:
        raise OptionError(f"--dims {dims}: the vectors have {vectors.shape[1]} numbers")
    own = embedder.model.network.unit_vectors
    cut = np.ascontiguousarray(vectors[:, :dims])
    return unit(cut) if (own if normalise is None else normalise) else cut


def search(
    index: Index | Place, queries: Place | Sequence[Any], top: int = 5, model: Named = ""
) -> list[list[Hit]]:
    """The nearest rows of an index for each query; see `Index.search`."""
    index = index if isinstance(index, Index) else Index.load(index)
    return index.search(queries, top, model)
