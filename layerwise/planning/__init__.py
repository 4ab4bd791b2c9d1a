"""The plan that is right before they pay: parameters, FLOPs, memory, time, energy and money."""

from layerwise.planning.estimate import Estimate
from layerwise.planning.forecast import Plan, Remedy
from layerwise.planning.hardware import Hardware, available_memory, hardware
from layerwise.planning.operations import forward_flops
from layerwise.planning.plan import make_plan
from layerwise.planning.step import checkpoint_layers

__all__ = [
    "Estimate",
    "Hardware",
    "Plan",
    "Remedy",
    "available_memory",
    "checkpoint_layers",
    "forward_flops",
    "hardware",
    "make_plan",
]
