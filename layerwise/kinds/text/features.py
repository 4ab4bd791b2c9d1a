"""Words counted: features of texts that need no network. Legend: n rows, V words."""

from collections.abc import Sequence
from typing import Any

from layerwise.data.examples import Examples, listed
from layerwise.kinds.text.documents import texts_of

MOST_TERMS = 100_000  # words and pairs of words


class WordCounts:
    """TF-IDF of words and pairs of words, fitted on training texts."""

    what = "TF-IDF of words with a linear model (of vectors: their cosine)"

    def __init__(self, train: Examples):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.words = TfidfVectorizer(
            ngram_range=(1, 2),
            token_pattern=r"(?u)\b\w+\b",
            sublinear_tf=True,
            min_df=2 if len(train) > 1000 else 1,
            max_features=MOST_TERMS,
        )
        self.words.fit(texts_of(train))

    def of(self, examples: Examples) -> Any:
        """(n, V), sparse."""
        return self.words.transform(texts_of(examples))

    def of_field(self, values: Sequence[Any]) -> Any:
        """Of the texts of one field: (n, V), each of length 1."""
        return self.words.transform(listed(values))
