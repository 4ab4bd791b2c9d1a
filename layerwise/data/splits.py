"""Training, validation and test rows: stratified, seeded, decided by the content of each row.

The same content never lies on both sides, under however many names or labels it appears, and the
outcome does not depend on the order in which the rows were listed: rows are ordered by their hash
alone. A split that came with the data is kept as it is; what it leaks the audit tells.

Legend: n rows, g groups of rows with the same content.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from layerwise.data.examples import Column, Examples, Finding, listed
from layerwise.data.table import Table
from layerwise.data.threads import parallel
from layerwise.errors import OptionError
from layerwise.storage import DIGEST, content_hash

RAW = Path, bytes, np.ndarray  # values that hold a file or what is in one
PARTS = ("train", "val", "test")
Carved = tuple[np.ndarray, dict[str, np.ndarray]]
FEW_FOR_VALIDATION = 100  # rows below which a tenth is too few to choose by


class Splits(dict[str, np.ndarray]):
    """{"train": rows, "val": rows, "test": rows}, each ascending; and what there is to say."""

    findings: list[Finding]

    def __init__(self, rows: dict[str, np.ndarray], findings: Sequence[Finding] = ()):
        super().__init__(rows)
        self.findings = list(findings)


def content_hashes(examples: Examples) -> list[bytes]:
    """What each row holds, in 16 bytes (blake2b): of a file's or pixel array's bytes, of the cells.

    Each file is read once, large sets on several threads. A file that cannot be read counts as
    its own content, so that it stays in the data until the audit names it.
    """
    read = {name: v for name, v in examples.fields.items() if name in examples.kinds}
    columns = {name: v.values for name, v in read.items() if isinstance(v, Column)}
    if read and len(columns) == len(read):
        return _row_hashes(Table(pa.table(columns)))
    first = next(iter(read.values()))
    if isinstance(first, Table):
        return _row_hashes(first)
    if len(first) and not isinstance(first[0], RAW):
        return list(map(content_hash, examples.rows()))
    files = len(first) > 64 and isinstance(first[0], Path)  # in memory: quicker than threads
    found = parallel(os.cpu_count() or 1 if files else 1)(content_hash, first)
    rest = [listed(v) for v in list(read.values())[1:]]
    if not rest:
        return list(found)
    return [
        content_hash(h + json.dumps(more).encode()) for h, *more in zip(found, *rest, strict=True)
    ]


def _row_hashes(table: Table) -> list[bytes]:
    names = sorted(table.columns)
    if not names:
        return [bytes(DIGEST)] * len(table)
    cells = np.stack([_cell_bits(table.column(name)) for name in names], axis=1)  # (n, columns)
    return [hashlib.blake2b(row, digest_size=DIGEST).digest() for row in cells]


def _cell_bits(cells: pa.Array) -> np.ndarray:
    """8 bytes for each cell (n,): a number's own, of text its hash; missing cells alike."""
    if pa.types.is_floating(cells.type):
        numbers = cells.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0  # -0 is 0
        return np.where(np.isnan(numbers), np.nan, numbers).view(np.int64)
    known = cells.is_valid().to_numpy(zero_copy_only=False)
    codes = cells.cast(pa.large_string()).dictionary_encode()  # texts of over 2 GiB, too
    words = [str(word).encode() for word in codes.dictionary.to_pylist()]
    hashed = b"".join(hashlib.blake2b(word, digest_size=8).digest() for word in words)
    of_word = np.frombuffer(hashed or bytes(8), np.int64)
    place = codes.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(known, of_word[place], 0)


def split(examples: Examples, seed: int = 0, val: float = 0.1, test: float = 0.2) -> Splits:
    """Rows for training, validation and test.

    val, test: shares of the contents, each stratum (class, or tenth of a number) alike.
    Rows that belong `together` are one content. Given splits are kept. With train and test given,
    val is taken out of train; with train and val alone, val is the test and a new val is taken out
    of train; train alone is split like any data.
    Errors: shares that leave nothing to train on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise OptionError(
            f"val={val:g} and test={test:g} should be shares from 0 up that leave something to "
            "train on, such as val=0.1, test=0.2"
        )
    if name := examples.together:
        hashes = [content_hash({name: value}) for value in examples[name]]
    else:
        hashes = content_hashes(examples)
    groups = _Groups(examples, hashes, seed)
    given = {part: np.flatnonzero(examples.given == part) for part in PARTS}
    findings = []
    rest = np.setdiff1d(np.arange(len(examples)), np.concatenate([given["val"], given["test"]]))
    if not len(given["test"]) and len(given["val"]):
        given["test"], given["val"] = given["val"], given["val"][:0]
        findings.append(_note("the given validation rows are the test, as no test was given"))
    test = 0.0 if len(given["test"]) else test
    val = 0.0 if len(given["val"]) else val
    train, carved = groups.carve(rest, {"test": test, "val": val})
    if val and len(given["test"]) and len(carved["val"]):
        findings.append(_note(f"{len(carved['val']):,} validation rows were taken out of train"))
    rows = {"train": train, **{part: np.union1d(given[part], carved[part]) for part in PARTS[1:]}}
    return Splits({part: r.astype(np.int64) for part, r in rows.items()}, findings)


def val_share(n: int, val: float) -> float:
    """The share of n rows to validate on: more of little data, to have something to choose by."""
    return max(val, min(0.25, FEW_FOR_VALIDATION / max(1, n)))


def place_of(data: str | Path) -> str:
    """Where data lies, as a model may tell strangers: a digest of its whole path."""
    path = str(Path(data).expanduser().resolve())
    return hashlib.blake2b(path.encode(), digest_size=8).hexdigest()


class _Groups:
    """Rows of the same content, each group with a stratum and a place in a seeded order."""

    def __init__(self, examples: Examples, hashes: Sequence[bytes], seed: int):
        digests = np.frombuffer(b"".join(hashes), f"S{DIGEST}")
        key = seed.to_bytes(8, "little", signed=True)
        unique, self.of = np.unique(digests, return_inverse=True)  # groups by hash; (n,) group
        self.n = len(unique)
        keyed = [hashlib.blake2b(h, digest_size=8, key=key).digest() for h in unique.tolist()]
        self.place = np.argsort(np.array(keyed, "S8"), kind="stable")  # groups in seeded order
        self.stratum = np.full(self.n, np.iinfo(np.int64).max)
        np.minimum.at(self.stratum, self.of, _strata(examples))

    def strata(self, groups: np.ndarray) -> list[np.ndarray]:
        """These groups, stratum by stratum, each in the seeded order."""
        chosen = np.zeros(self.n, bool)
        chosen[groups] = True
        order = self.place[chosen[self.place]]
        order = order[np.argsort(self.stratum[order], kind="stable")]
        ends = np.flatnonzero(np.diff(self.stratum[order])) + 1
        return np.split(order, ends)

    def carve(self, rows: np.ndarray, shares: dict[str, float]) -> Carved:
        """These rows without the carved ones, and the rows carved out for each share."""
        strata = self.strata(np.unique(self.of[rows]))
        part = np.full(self.n, "train", "U5")
        sizes = np.array([len(stratum) for stratum in strata])
        taken = np.zeros_like(sizes)
        for name, share in shares.items():
            quota = _apportion(sizes, share, np.maximum(sizes - taken - 1, 0))
            for stratum, start, many in zip(strata, taken, quota, strict=True):
                part[stratum[start : start + many]] = name
            taken += quota
        of_rows = part[self.of[rows]]
        return rows[of_rows == "train"], {name: rows[of_rows == name] for name in shares}


def _apportion(sizes: np.ndarray, share: float, spare: np.ndarray) -> np.ndarray:
    """How many of each stratum make up `share` of the whole: the largest remainders round up.

    At least one in all where a share is asked for; no stratum gives more than it can spare.
    """
    exact = sizes * share
    quota = np.minimum(np.floor(exact).astype(np.int64), spare)
    more = max(round(float(exact.sum())), int(share > 0)) - int(quota.sum())
    # of equal remainders the stratum with more to spare gives first
    order = np.lexsort((np.arange(len(sizes)), -spare, -(exact - quota).round(9)))
    order = order[quota[order] < spare[order]]
    quota[order[: max(more, 0)]] += 1
    return quota


def _strata(examples: Examples) -> np.ndarray:
    """The stratum of each row: its class, its rarest label, or the tenth its number lies in."""
    targets = examples.targets
    if targets is None:
        return np.zeros(len(examples), np.int64)
    if examples.target_kind == "number":
        bounds = np.quantile(targets, np.linspace(0, 1, 11)[1:-1])
        return np.searchsorted(bounds, targets).astype(np.int64)
    if examples.target_kind == "classes":
        counts = targets.sum(0).astype(np.int64)  # (C,)
        rarity = np.where(targets > 0, counts, np.iinfo(np.int64).max)  # (n, C)
        return np.where(targets.any(1), rarity.argmin(1), targets.shape[1]).astype(np.int64)
    return targets.astype(np.int64)


def stratified_folds(classes: np.ndarray, k: int, seed: int) -> np.ndarray:
    """A fold for each row (n,), each class (n,) dealt out evenly like cards."""
    order = np.random.default_rng(seed).permutation(len(classes))
    fold = np.empty(len(classes), np.int64)
    fold[order[np.argsort(classes[order], kind="stable")]] = np.arange(len(classes)) % k
    return fold


def _note(message: str) -> Finding:
    return Finding("split", "note", message)
