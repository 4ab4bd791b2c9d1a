"""Raw files to batches: open, split, audit, decode, augment, load. Import the module you need."""
