"""Change a finished network from outside: freeze, group parameters, LoRA, quantise, fuse."""
