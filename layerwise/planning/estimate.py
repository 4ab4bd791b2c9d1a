"""A number with its interval."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """What is expected, and between what it should lie 19 times out of 20."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        return cls(value, value, value)

    @classmethod
    def around(cls, value: float, below: float, above: float | None = None) -> "Estimate":
        """`value` with relative margins: around(10, 0.1) is 9 to 11."""
        return cls(value, value * (1 - below), value * (1 + (below if above is None else above)))

    def scaled(self, factor: float) -> "Estimate":
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def times(self, other: "Estimate") -> "Estimate":
        """The product of two positive estimates; the ends multiply, which is the wide answer."""
        return Estimate(self.value * other.value, self.low * other.low, self.high * other.high)

    def plus(self, other: "Estimate | float") -> "Estimate":
        o = other if isinstance(other, Estimate) else Estimate.exact(other)
        return Estimate(self.value + o.value, self.low + o.low, self.high + o.high)
