"""Change how a finished network learns, always from outside: freeze, group, LoRA."""
