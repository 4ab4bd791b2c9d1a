"""What a run costs in energy and money, with intervals that follow from that of its time."""

from layerwise.planning.estimate import Estimate
from layerwise.planning.hardware import Hardware


def energy(seconds: Estimate, hardware: Hardware) -> Estimate:
    """Joules that the hardware draws in that time."""
    return seconds.times(hardware.watts)


def money(seconds: Estimate, hardware: Hardware) -> Estimate:
    """US dollars that renting the hardware for that time costs."""
    return seconds.times(hardware.dollars_per_hour).scaled(1 / 3600)
