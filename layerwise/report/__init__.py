"""The report of a run: what is collected (`collect.py`), and one page that shows it (`page.py`)."""
