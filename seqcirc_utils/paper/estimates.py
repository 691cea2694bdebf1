"""Values with 95% intervals, and what follows for their sums, differences and ratios."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval, of ``n`` prompts or questions.

    ``n`` is 0 for what was counted: it has no error, and its bounds are the value.
    """

    value: float
    low: float
    high: float
    n: int = 0

    @classmethod
    def of(cls, bounds: Iterable[float], n: int) -> "Estimate":
        """From a value and its two bounds."""
        value, low, high = map(float, bounds)
        return cls(value, low, high, n)

    @classmethod
    def counted(cls, value: float) -> "Estimate":
        """A value without an error."""
        return cls(value, value, value)

    def times(self, factor: float) -> "Estimate":
        """It, multiplied by a number."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, low, high, self.n)

    def plus(self, other: "Estimate") -> "Estimate":
        """The sum of two values of the same prompts: at worst their errors add up."""
        bounds = self.value + other.value, self.low + other.low, self.high + other.high
        return Estimate.of(bounds, min(self.n, other.n))

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference from a value of other prompts: their errors are independent."""
        value = self.value - other.value
        down = math.hypot(self.value - self.low, other.high - other.value)
        up = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - down, value + up, min(self.n, other.n))

    def beyond(self, other: "Estimate") -> "Estimate":
        """The difference from a value of the same prompts: at worst their errors add up."""
        bounds = self.value - other.value, self.low - other.high, self.high - other.low
        return Estimate.of(bounds, min(self.n, other.n))

    def over(self, other: "Estimate") -> "Estimate":
        """The ratio to a value that is positive with its whole interval; the errors independent.

        Where the other's interval reaches zero, the ratio has no upper bound.
        """
        tiny = 1e-9
        down, up = (
            math.hypot(math.log(a / b), math.log(c / d))
            for a, b, c, d in (
                [max(x, tiny) for x in (self.value, self.low, other.high, other.value)],
                [max(x, tiny) for x in (self.high, self.value, other.value, other.low)],
            )
        )
        value = max(self.value, tiny) / max(other.value, tiny)
        return Estimate(value, value * math.exp(-down), value * math.exp(up), min(self.n, other.n))


def resampled(
    statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray, seed: int = 0
) -> Estimate:
    """A statistic of means over prompts, with its percentile bootstrap interval.

    Args:
        statistic: Makes ``[draw]`` of means ``[component, draw]``.
        values: ``[component, n]``.
        seed: Draws the prompts.
    """
    n = values.shape[-1]
    rows = np.random.default_rng(seed).integers(n, size=(1000, n))
    low, high = np.quantile(statistic(values[:, rows].mean(-1)), (0.025, 0.975))
    return Estimate.of([statistic(values.mean(-1, keepdims=True))[0], low, high], n)
