"""A kind, two families and a task that exist for `tests/test_new_rows.py` alone.

They are what a newcomer would add, and nothing in the package knows them.
"""
