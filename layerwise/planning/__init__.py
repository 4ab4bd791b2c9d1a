"""What a run will take, before it is started: parameters, FLOPs, memory, time, energy and money."""

from layerwise.planning.forecast import Plan
from layerwise.planning.operations import forward_flops
from layerwise.planning.plan import make_plan

__all__ = ["Plan", "forward_flops", "make_plan"]
