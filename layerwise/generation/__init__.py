"""Decoding: from a prompt to its continuation."""
