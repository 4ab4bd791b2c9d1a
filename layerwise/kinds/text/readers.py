"""The processors of texts by how they read: what a row is to them."""

from layerwise.kinds.text.each import EachProcessor
from layerwise.kinds.text.processor import TextProcessor
from layerwise.kinds.text.spans import SpanProcessor
from layerwise.kinds.text.tagged import WordProcessor

READERS = {p.reads: p for p in (TextProcessor, WordProcessor, SpanProcessor, EachProcessor)}
OF_HEAD = {"tag": "words", "span": "spans", "embed": "each"}  # of published networks; else "text"
