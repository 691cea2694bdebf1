"""Means with intervals, rates, p-values: what every number is reported with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control, t, yeojohnson, yeojohnson_normmax
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator, success_rate_ci

from seqcirc_utils.errors import CannotDo, UserError


def finite(values: torch.Tensor) -> torch.Tensor:
    """Logits, or differences of them, when all are numbers.

    Raises:
        UserError: for NaN or infinity.
    """
    if not torch.isfinite(values).all():
        raise UserError("the model's logits hold NaN or infinity: try dtype float32.")
    return values


def percentile_p(value: float, null: Sequence[float] | np.ndarray) -> float:
    """One-sided p-value of ``value`` against draws of a null, never 0: (hits + 1) / (draws + 1)."""
    return (int((np.asarray(null) >= value).sum()) + 1) / (len(null) + 1)


MIN_DRAWS = 8
"""Fewer draws than this do not show how a null spreads."""


@dataclass(frozen=True)
class Tail:
    """A null known by its draws, for values above it.

    Ranks among ``n`` draws give no p-value below ``1 / (n + 1)``, which no correction for many
    tests leaves small. So the draws are made normal by a power (Yeo and Johnson 2000, from 0,
    nearly a logarithm, to 1, none: both without an upper bound, so that any p-value can be
    reached). Under the null the value is one draw more of that normal law: Student's t. What the
    power does depends on the unit and on where 0 is, so it is taken of distances from the median in
    thirds of a standard deviation. Far below ``1 / n`` a p-value is the law's, not the draws'.

    Attributes:
        centre: Median of the draws.
        unit: A third of their standard deviation.
        power: The power.
        mean: Mean of the draws after it.
        spread: Standard deviation of one draw more about that mean.
        n: How many draws.
    """

    centre: float
    unit: float
    power: float
    mean: float
    spread: float
    n: int

    @classmethod
    def of(cls, null: Sequence[float] | np.ndarray) -> "Tail | None":
        """The null of these draws; ``None`` where they are too few or all alike."""
        null = np.asarray(null, float)
        if len(null) < MIN_DRAWS or np.ptp(null) <= 1e-8 * np.abs(null).max():
            return None
        centre, unit = float(np.median(null)), float(null.std(ddof=1) / 3)
        null = (null - centre) / unit
        power = float(np.clip(yeojohnson_normmax(null), 0, 1))
        drawn = yeojohnson(null, power)
        spread = drawn.std(ddof=1) * np.sqrt(1 + 1 / len(null))
        return cls(centre, unit, power, float(drawn.mean()), float(spread), len(null))

    def p(self, value: float) -> float:
        """Probability of so large a value, or a larger one, under the null."""
        at = yeojohnson(np.array([(value - self.centre) / self.unit]), self.power)[0]
        return float(t.sf((at - self.mean) / self.spread, self.n - 1))

    def needed(self, p: float) -> float:
        """The least value with so small a p-value: what a test at that level can find."""
        at = self.mean + t.isf(p, self.n - 1) * self.spread
        if at < 0:  # the inverse for negative values
            value = 1 - (1 - (2 - self.power) * at) ** (1 / (2 - self.power))
        elif self.power == 0:
            value = np.expm1(at)
        else:
            value = (self.power * at + 1) ** (1 / self.power) - 1
        return float(self.centre + self.unit * value)


def short(value: float, digits: int = 2) -> str:
    """A number with so many digits that count, with powers of ten as people write them."""
    text, _, power = f"{value:.{digits}g}".partition("e")
    return f"{text} × 10{str(int(power)).translate(_RAISED)}" if power else text


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:z.2f} [{self.low:z.2f}, {self.high:z.2f}]"


def interval(values: torch.Tensor, seed: int = 0) -> Interval:
    """Mean of ``[n]`` values with a percentile bootstrap interval over prompts."""
    values = values.double()
    low, high = bootstrap_ci(values, generator=derive_generator(seed, "interval"))
    return Interval(values.mean().item(), low.item(), high.item())


def intervals(values: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Means of ``[m, n]`` values over prompts, and the bootstrap bounds: three ``[m]`` tensors."""
    values = values.double()
    low, high = bootstrap_ci(values, generator=derive_generator(seed, "interval"))
    return values.mean(-1), low, high


def ratios(
    over: torch.Tensor, under: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means of ``[m, n]`` values over the mean of ``[n]`` others, with bootstrap bounds ``[m]``.

    Prompts are resampled for both together. Draws in which the lower mean is not positive say
    nothing about a share and are left out; bounds are NaN where no draw is left.
    """
    over, under = over.double(), under.double()
    n, rng = len(under), derive_generator(seed, "ratios")
    rows = torch.randint(n, (DRAWS, n), generator=rng)
    below = under[rows].mean(1)  # [draw]
    below[below <= 0] = torch.nan
    drawn = torch.stack([value[rows].mean(1) / below for value in over])  # [m, draw]
    low, high = drawn.nanquantile(torch.tensor([0.025, 0.975]).double(), dim=1)
    return over.mean(1) / under.mean(), low, high


DRAWS = 1000
"""Resamples of the prompts behind an interval of :func:`ratios`."""


def over_groups(
    over: torch.Tensor, under: torch.Tensor, groups: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """95% bounds of :func:`ratios` ``[m]`` where whole groups, not prompts, count as drawn.

    What a ratio of means varies by, to first order, summed by group, with Student's t of one degree
    of freedom less than there are groups (Cochran 1977, Sampling Techniques, chapters 6 and 9). Of
    means, give ones as ``under``. NaN for one group.
    """
    over, under = over.double(), under.double()
    ratio = over.mean(1, keepdim=True) / under.mean()
    found, member = np.unique(np.asarray(groups), return_inverse=True)
    parts = torch.zeros(len(over), len(found), dtype=over.dtype)  # [m, group]
    parts.index_add_(1, torch.as_tensor(member), over - ratio * under)
    k = len(found)
    if k < 2:
        return torch.full((len(over),), torch.nan), torch.full((len(over),), torch.nan)
    spread = (k / (k - 1) * parts.square().sum(1)).sqrt() / under.sum().abs()
    half = float(t.isf(0.025, k - 1)) * spread
    return ratio[:, 0] - half, ratio[:, 0] + half


def between_groups(values: torch.Tensor, groups: Sequence[int]) -> float:
    """Share of the variance of ``[n]`` values that lies between groups, not within them.

    The intraclass correlation of one-way analysis of variance (Fisher 1925), 0 at least; NaN where
    no group has two values, or all values are alike.
    """
    of = pd.Series(values.double().numpy()).groupby(np.asarray(groups))
    n, sizes, k = len(values), of.size(), of.ngroups
    if not 1 < k < n:
        return float("nan")
    within = ((of.obj - of.transform("mean")) ** 2).sum() / (n - k)
    among = (sizes * (of.mean() - of.obj.mean()) ** 2).sum() / (k - 1)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    total = among + (size - 1) * within
    return max(0.0, float((among - within) / total)) if total > 0 else float("nan")


def rate(successes: torch.Tensor) -> Interval:
    """Share of ``[n]`` successes with the exact (Clopper-Pearson) interval."""
    ci = success_rate_ci(successes.tolist())
    return Interval(ci.point_estimate, ci.ci_low, ci.ci_high)


def over_both(values: torch.Tensor, seed: int = 0) -> Interval:
    """Mean of ``[set, n]`` values, with the bootstrap over sets and prompts together.

    Values that are all alike have no width over sets; then it is the exact one of a share.
    """
    values, rng = values.double(), derive_generator(seed, "both")
    if values.min() == values.max() and values[0, 0] in (0, 1):
        return rate(values[0])
    sets, prompts = (torch.randint(n, (DRAWS, n), generator=rng) for n in values.shape)
    drawn = values[sets[:, :, None], prompts[:, None, :]].mean((1, 2))
    low, high = drawn.quantile(torch.tensor([0.025, 0.975]).double())
    return Interval(values.mean().item(), low.item(), high.item())


def positive_baseline(logit_diff: torch.Tensor, what: str) -> float:
    """The mean logit difference that percentages refer to.

    Raises:
        CannotDo: when it is not positive; a ratio of it would mean nothing.
    """
    mean = logit_diff.mean().item()
    if not mean > 0:
        raise CannotDo(
            f"{what} has a mean logit difference of {mean:.3f}: the model does not prefer the next "
            "member, so shares of this score mean nothing. Choose another task, model or template."
        )
    return mean


def corrected(p: pd.Series) -> pd.Series:
    """P-values corrected for all tests, after Benjamini and Hochberg; NaN (no test) stays NaN.

    Of the rows with a corrected value below .05, one in twenty is expected to be chance.
    """
    tested = p.dropna()
    return pd.Series(false_discovery_control(tested), tested.index).reindex(p.index)
