"""Leaf modules and pure functions that more than one family uses."""
