"""The kind `text`: what is special about texts, alone, in pairs, tagged, or asked about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.data.examples import Examples
from layerwise.data.records import Reading
from layerwise.data.sources import Source
from layerwise.kinds.contract import Choice, Ends, Kind, Looks, Place, Recognised, Shown, Start
from layerwise.kinds.text import encoders, language
from layerwise.kinds.text.audit import look_at_texts
from layerwise.kinds.text.documents import plain_examples, text_examples, texts_of
from layerwise.kinds.text.features import WordCounts
from layerwise.kinds.text.opening import open_text_file, open_text_folder
from layerwise.kinds.text.processor import TextProcessor
from layerwise.kinds.text.readers import OF_HEAD, READERS
from layerwise.kinds.text.source import CorpusWindows, Texts
from layerwise.models.network import Network, head_kind
from layerwise.settings import Settings
from layerwise.tokens.tokenizer import Tokenizer, padded_length

SHOWN = 400  # characters of a text
LENGTH = 512  # tokens of a text, where none is given
BERT_WIDTH, LEAST_RATE, MOST_RATE = 768, 2e-5, 3e-4
FORMS = ({"question", "context"}, {"anchor", "positive", "negative"}, {"text_a", "text_b"})


def rate_for(rate: float, width: int) -> float:
    """A whole network that learns a task of texts takes a higher rate where it is narrow (measured,
    docs/log.md; Turc et al., arXiv:1908.08962, tune small ones up to 3e-4)."""
    return min(max(rate * (BERT_WIDTH / width) ** 2, LEAST_RATE), MOST_RATE) if width else rate


STARTS = {  # of windows, learned at every token, and of rows
    "windows": {
        "scratch": Start(4e-3, 32, 5, "muon", 0.1, "wsd", flexible=True),
        "full": Start(1e-4, 16, 3, weight_decay=0.1),
        "lora": Start(5e-4, 16, 3, weight_decay=0.0),
    },
    "rows": {
        # Devlin et al., appendix A.3: 2e-5 to 5e-5 for 2 to 4 passes
        "full": Start(5e-5, 32, 3, "adamw", 0.01, "linear", most_passes=20, least_read=19_200,
                      rate_for=rate_for),
        "lora": Start(5e-4, 32, 3, "adamw", 0.0, "linear"),
        "scratch": Start(1e-3, 64, 10, "adamw", 0.05, "linear"),
    },
}  # fmt: skip


class Text(Kind[TextProcessor]):
    """A row has one text or several; see `layouts.py` for the fields of each form."""

    name = "text"
    noun = "texts"
    tensor = "tokens"
    ground = "tokens"
    accepts = "text (.txt, source code, JSON, JSONL, CSV, TSV, Parquet, CoNLL)"
    bases = (
        "FacebookAI/roberta-base",
        "google-bert/bert-base-uncased",
        "sentence-transformers/all-MiniLM-L12-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "distilbert/distilbert-base-uncased",
    )
    suggested = "sentence-transformers/all-MiniLM-L6-v2"
    alike = "say nearly the same as another"
    insists = True

    # ---- finding and reading -------------------------------------------------------------------
    def recognise(self, place: Place, reading: Reading) -> Recognised | None:
        asked, listing = bool(reading.kind), place.listing
        if listing is not None:
            return Recognised(0.7, lambda: open_text_folder(listing, reading, asked))
        return Recognised(0.7, lambda: open_text_file(place.path, reading, asked))

    def of_values(self, values: Sequence[Any]) -> Examples:
        """Bare texts, or dicts of the fields of a form."""
        names = [f"text {i}" for i in range(len(values))]
        if not values or not isinstance(values[0], Mapping):
            return plain_examples(list(values), names)
        form = next((form for form in FORMS if values[0].keys() >= form), set())
        if "context" in form:
            return text_examples("spans", [dict(row) for row in values], names)
        fields: dict[str, Any] = {name: [row[name] for row in values] for name in values[0]}
        given = np.full(len(values), "", "U5")
        return Examples(fields, dict.fromkeys(form or fields, self.name), names, given)

    def unlearnable(self, examples: Examples) -> str:
        if examples.has("question", "context"):
            return f"{examples.understood}: no label to learn, as no question has an answer"
        cure = "`layerwise audit` looks at it, and --kind table reads rows with columns as a table"
        return f"{examples.understood}: `fit` does not learn from this form of text yet; {cure}"

    def look(self, examples: Examples) -> Looks:
        return look_at_texts(examples)

    def show(self, examples: Examples, row: int, side: int = 96) -> Shown:
        text = texts_of(examples.subset(np.array([row])))[0]
        return Shown(text if len(text) <= SHOWN else text[:SHOWN] + " ...")

    # ---- tensors -------------------------------------------------------------------------------
    def source(
        self,
        examples: Examples,
        processor: TextProcessor,
        augment: object,
        dtype: torch.dtype,
        **options: Any,
    ) -> Source:
        return CorpusWindows(examples) if examples.has("windows") else Texts(examples, processor)

    def lengths(
        self, examples: Examples, processor: TextProcessor, whole: bool = False
    ) -> np.ndarray | None:
        windows = examples.has("windows")
        return None if windows else encoders.token_lengths(examples, processor, whole)

    def longest_padded(self, length: int, processor: TextProcessor, rows: int) -> int:
        """What lies beyond the context comes in windows, whole ones."""
        most = processor.max_seq_len
        return padded_length(length, most, rows) if length <= most else -(-length // most) * most

    def cut(self, examples: Examples, processor: TextProcessor) -> tuple[np.ndarray, str]:
        lengths = self.lengths(examples, processor, whole=True)
        if lengths is None or processor.reads in ("words", "spans"):  # divided, not cut
            return np.zeros(0, np.int64), ""
        over = (lengths - processor.max_seq_len).clip(0)
        share = f"{over.sum() / lengths.sum():.1%} of all tokens (--max-seq-len sets the limit)"
        said = f"cut at their end: {(over > 0).sum():,} of {len(over):,} rows, {share}"
        return np.flatnonzero(over), said if over.any() else ""

    def cut_off(self, examples: Examples, row: int, processor: TextProcessor) -> Sequence[int]:
        if examples.has("windows") or processor.reads != "text":
            return ()
        whole = replace(processor, max_seq_len=encoders.WHOLE)
        ids = np.atleast_2d(whole.encode(examples.subset(np.array([row])).rows())[0])[0]
        return ids[processor.max_seq_len :].tolist()

    def example(
        self, family: str, variant: str, config: Any, size: int, rows: int
    ) -> dict[str, Tensor]:
        return {"tokens": torch.zeros(rows, size or LENGTH, dtype=torch.int64)}

    # ---- choosing ------------------------------------------------------------------------------
    def reader(
        self, train: Examples, ends: Ends, settings: Settings, known: TextProcessor | None
    ) -> Any:
        return language.reader_for(train, ends, settings, known)

    def describe(self, parts: Mapping[str, Examples], processor: TextProcessor) -> str:
        return language.windows_said(parts, processor)

    def choose(
        self, train: Examples, ends: Ends, settings: Settings, reader: TextProcessor | None = None
    ) -> Choice:
        if not train.has("windows"):
            return encoders.choose_encoder(train, ends, settings)
        assert reader is not None, "windows are made before a network is chosen"
        if ends.kind == "masked":
            return encoders.choose_for_words(train, reader, settings)
        return language.choose_decoder(train, reader, settings)

    def processor_for(self, train: Examples, ends: Ends, settings: Settings) -> TextProcessor:
        return encoders.fresh_reader(train, ends, settings)

    def start(self, way: str, train: Examples, choice: Choice) -> Start:
        return STARTS["windows" if train.has("windows") else "rows"][way]

    def for_base(
        self, processor: TextProcessor, network: Network, ends: Ends, settings: Settings
    ) -> TextProcessor:
        return encoders.read_by(processor, network, ends, settings)

    def plain_features(self, train: Examples) -> WordCounts | None:
        return None if train.has("windows") else WordCounts(train)

    # ---- saving --------------------------------------------------------------------------------
    def save(self, processor: TextProcessor, folder: Path) -> dict[str, Any]:
        """The tokenizer's own files; how texts are read, and by which tokenizer."""
        processor.save(folder)
        fingerprint = processor.tokenizer.fingerprint
        return {"processor": processor.to_dict(), "tokenizer": fingerprint}

    def load(self, folder: Path, saved: Mapping[str, Any], config: Any) -> TextProcessor:
        tokenizer = Tokenizer.load(folder)
        tokenizer.check(
            vars(config).get("vocab_size", tokenizer.vocab_size),
            saved.get("tokenizer"),
            f"{folder}: ",
        )
        values = {"reads": "text"} | saved["processor"]
        return READERS[values.pop("reads")](tokenizer, **values)

    def of_card(self, card: Any, network: Network, tokenizer: Callable[[], Any]) -> Any:
        make = READERS[OF_HEAD.get(head_kind(network), "text")]
        types = "token_types" in network.READS and network.config.n_token_types > 1
        return make(tokenizer(), card.processor["max_length"], types)

    def published_config(self, processor: TextProcessor, labels: Sequence[str]) -> dict[str, Any]:
        """The ids of special tokens."""
        words = processor.tokenizer
        return {f"{role}_token_id": getattr(words, f"{role}_id") for role in ("bos", "eos", "pad")}
