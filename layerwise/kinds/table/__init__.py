"""Tables: rows of numbers, categories and dates."""
