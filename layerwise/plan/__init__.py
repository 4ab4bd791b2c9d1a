"""The plan that is right before they pay: parameters, FLOPs, memory, time, energy and money."""

from layerwise.plan.estimate import Estimate
from layerwise.plan.forecast import Plan, Remedy
from layerwise.plan.hardware import Hardware, available_memory, hardware
from layerwise.plan.operations import forward_flops
from layerwise.plan.planning import make_plan
from layerwise.plan.step import checkpoint_layers

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
