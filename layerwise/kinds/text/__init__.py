"""Text: documents, texts with labels, pairs, tagged words, questions and answers."""
