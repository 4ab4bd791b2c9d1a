"""`fit`: from raw rows to a trained, scored and explained model."""
