"""Published configs, read and written."""
