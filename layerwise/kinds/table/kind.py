"""The kind `table`: what is special about rows of numbers, categories and dates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from layerwise import models
from layerwise.data.array_files import arrays_of
from layerwise.data.arrays import open_arrays
from layerwise.data.examples import Examples, Finding
from layerwise.data.listing import Listing, Place
from layerwise.data.naming import about, shown
from layerwise.data.records import Reading, is_table, pair_files, parquet_tables
from layerwise.data.sources import Source, Tensors
from layerwise.data.table import Table
from layerwise.kinds.contract import CONFIG, Choice, Ends, Kind, Looks, Recognised, Shown, Start
from layerwise.kinds.table.audit import audit_columns
from layerwise.kinds.table.files import open_tables
from layerwise.kinds.table.processor import TableProcessor
from layerwise.runtime import DTYPES, Runtime
from layerwise.settings import Settings
from layerwise.storage import read_json

START = Start(2e-3, 256, 20, weight_decay=0.02, flexible=True)


class Rows(Source):
    """A table, made into numbers once."""

    def __init__(self, examples: Examples, processor: TableProcessor, dtype: torch.dtype):
        self.n = len(examples)
        self.table: Tensor = processor(examples["table"]).to(dtype)  # (n, n_in)

    def look(self, rows: np.ndarray) -> Tensors:
        return {"table": self.table[torch.from_numpy(rows)]}


class Tables(Kind[TableProcessor]):
    """Each row is one value: a dict of its columns."""

    name = "table"
    noun = "rows"
    tensor = "table"
    ground = "raw input"
    accepts = "a CSV/TSV/Parquet table"
    copies = "note"  # equal rows can be different cases
    has_vectors = False

    # ---- finding and reading -------------------------------------------------------------------
    def recognise(self, place: Place, reading: Reading) -> Recognised | None:
        path, listing = place.path, place.listing
        asked, kind = bool(reading.kind), reading.target_kind
        may = listing is None or asked or not listing.mostly_text
        arrays = arrays_of(place, reading) if may else None

        def of_arrays() -> Examples | None:
            return arrays and open_arrays(arrays, place.folder, kind, self.name, features_of)

        if arrays and (listing is None or not asked):
            return Recognised(0.99 if listing is None else 0.85, of_arrays)
        if listing is not None:  # where a table is asked for, its files come before arrays
            return Recognised(0.5, lambda: self.open_folder(listing, reading) or of_arrays())
        if is_table(path):
            return Recognised(0.5, lambda: open_tables([reading.table(path)], [""], reading))
        return None

    def open_folder(self, listing: Listing, reading: Reading) -> Examples | None:
        """All Parquet files, else the tables that lie here; None without any."""
        raw, splits = parquet_tables(listing, reading)
        if raw:
            return open_tables(raw, splits, reading)
        here = listing.here
        tables = [p for p in here if is_table(p)]
        if not tables:
            return None
        pairs = pair_files(tables)
        opened = open_tables([reading.table(p) for p, _ in pairs], [s for _, s in pairs], reading)
        others = [shown(p.name) for p in here if p not in tables]
        opened.findings = opened.findings + about("unused", "note", others, "files were left out")
        return opened

    def of_values(self, values: Sequence[Any]) -> Examples:
        table = Table.of(values)
        return Examples.of("table", table, [f"row {i + 1}" for i in range(len(table))])

    def look(self, examples: Examples) -> Looks:
        return replace(super().look(examples), findings=audit_columns(examples))

    def show(self, examples: Examples, row: int, side: int = 96) -> Shown:
        return Shown()

    # ---- tensors -------------------------------------------------------------------------------
    def source(
        self,
        examples: Examples,
        processor: TableProcessor,
        augment: object,
        dtype: torch.dtype,
        **options: Any,
    ) -> Source:
        return Rows(examples, processor, dtype)

    def example(self, family: str, variant: str, config: Any, size: int, rows: int) -> Tensors:
        return {"table": torch.zeros(rows, config.n_in)}

    # ---- choosing ------------------------------------------------------------------------------
    def processor_for(self, train: Examples, ends: Ends, settings: Settings) -> TableProcessor:
        return TableProcessor.fit(train)

    def choose(
        self, train: Examples, ends: Ends, settings: Settings, reader: TableProcessor | None = None
    ) -> Choice:
        processor = TableProcessor.fit(train)
        name = "mlp" if settings.model == "auto" else settings.model
        family, config = models.resolve(name, n_in=processor.n_in, n_classes=ends.n_outputs)
        why = "tables go to a multilayer perceptron"
        return Choice(name, family, config, {self.name: processor}, why)

    def start(self, way: str, train: Examples, choice: Choice) -> Start:
        return START

    def machine(self, machine: Runtime, settings: Settings) -> Runtime:
        """fp32 on one thread: these matrices are too small for bf16 or a second thread.

        Beside other work, two threads that wait for each other thousands of times a second are many
        times slower than one.
        """
        if not settings.threads:
            torch.set_num_threads(1)
        if settings.dtype != "auto":
            return machine
        return Runtime(machine.device, DTYPES["fp32"], machine.threads, machine.notes)

    # ---- saving --------------------------------------------------------------------------------
    def load(self, folder: Path, saved: Mapping[str, Any], config: object) -> TableProcessor:
        return TableProcessor.from_dict(read_json(folder / CONFIG))


def features_of(x: np.ndarray, names: list[str], findings: list[Finding]) -> tuple[Table, str]:
    """An array (n, ...) as columns x0, x1 ..., and what it is in words."""
    flat = x.reshape(len(x), -1).astype(np.float64)  # (n, features)
    infinite = [names[row] for row in np.flatnonzero(np.isinf(flat).any(1))]
    findings += about("infinite", "warning", infinite, "rows have infinite numbers: left missing")
    columns = {f"x{i}": pa.array(cells, mask=~np.isfinite(cells)) for i, cells in enumerate(flat.T)}
    said = f"{len(x):,} rows of {flat.shape[1]:,} numbers"
    return Table(pa.table(columns)), said
