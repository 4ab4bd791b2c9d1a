"""The one training loop and what wraps it: optimisers, schedules, checkpoints, guardian."""
