"""Depth made visible: watch, diagnosis, depth report, attribution; written against `layers()`."""
