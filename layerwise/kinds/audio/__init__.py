"""Audio: recordings of speech and other sounds."""
