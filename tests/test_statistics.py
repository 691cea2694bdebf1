"""A null known by its draws: p-values are those of one draw more, and can be very small."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, sem, t

from seqcirc_utils.statistics import (
    MIN_DRAWS,
    Tail,
    between_groups,
    interval,
    intervals,
    over_both,
    over_groups,
    ratios,
    short,
)


@pytest.mark.parametrize("law", ["normal", "lognormal"])
def test_under_the_null_p_values_are_uniform(law):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(600):
        drawn = getattr(rng, law)(1.0, 0.5, 21)
        found.append(Tail.of(drawn[1:]).p(drawn[0]))
    found = np.array(found)
    assert kstest(found, "uniform").pvalue > 0.01
    assert (found < 0.05).mean() < 0.08  # in the tail too


@pytest.mark.parametrize(("add", "times"), [(0, 1), (0, 0.01), (5, 1)])
def test_skewed_nulls_reject_as_seldom_as_they_say(add, times):
    """With powers of the bare draws, small or shifted ones gave p < .01 in 5 of 100."""
    rng = np.random.default_rng(1)
    drawn = add + times * rng.exponential(1.0, (1500, 17))
    found = np.array([Tail.of(row[1:]).p(row[0]) for row in drawn])
    assert 0.03 < (found < 0.05).mean() < 0.07
    assert (found < 0.01).mean() < 0.025


@pytest.mark.parametrize("add", [0, 1, -20])
@pytest.mark.parametrize("times", [0.001, 1, 1000])
def test_neither_the_unit_nor_where_0_is_changes_a_p_value(times, add):
    drawn = np.random.default_rng(2).lognormal(0, 1, 16)
    plain, other = Tail.of(drawn), Tail.of(times * (drawn + add))
    for value in (0.5, 3.0, 12.0):
        assert other.p(times * (value + add)) == pytest.approx(plain.p(value), rel=1e-3)
    for p in (0.3, 0.01):
        expected = times * (plain.needed(p) + add)
        assert other.needed(p) == pytest.approx(expected, rel=1e-3, abs=1e-3 * times)


def test_without_a_power_it_is_students_t():
    drawn = np.arange(10) - 4.5  # symmetric: no power is needed
    tail = Tail.of(drawn)
    assert tail.power == pytest.approx(1, abs=0.01)
    spread = drawn.std(ddof=1) * np.sqrt(1.1)
    assert tail.spread * tail.unit == pytest.approx(spread, rel=0.02)
    # t = 2.262 is the two-sided 5% point of Student's t with 9 degrees of freedom (any table).
    assert tail.p(2.262 * spread) == pytest.approx(0.025, rel=0.05)
    assert tail.p(0) == pytest.approx(0.5, abs=0.01)


def test_no_p_value_is_out_of_reach():
    for drawn in (np.random.default_rng(0).lognormal(0, 2, 20), -np.arange(9.0), np.arange(9.0)):
        tail = Tail.of(drawn)
        for p in (0.4, 0.05, 1e-6):
            assert np.isfinite(tail.needed(p)) and tail.p(tail.needed(p)) == pytest.approx(p)
        assert tail.needed(1e-6) > tail.needed(0.05) > tail.needed(0.4)


def test_too_few_draws_and_equal_ones_have_no_spread():
    assert Tail.of(np.arange(MIN_DRAWS - 1)) is None and Tail.of(np.ones(30)) is None
    assert Tail.of(np.arange(MIN_DRAWS)) is not None


def test_powers_of_ten_are_written_as_people_do():
    assert [short(6.1e-25), short(6.1e-25, 1), short(1.2e7)] == [
        "6.1 × 10⁻²⁵",
        "6 × 10⁻²⁵",
        "1.2 × 10⁷",
    ]
    assert [short(0.0123), short(0), short(-3.14159, 3), short(1)] == ["0.012", "0", "-3.14", "1"]


def test_a_ratio_is_of_means_and_both_are_resampled_together():
    under = torch.tensor([1.0, 2.0, 3.0, 6.0])
    over = torch.stack([under / 2, torch.tensor([3.0, 0.0, 3.0, 0.0])])
    mean, low, high = ratios(over, under)
    assert mean.tolist() == [0.5, 0.5] and low[0] == high[0] == 0.5  # the same share in each prompt
    assert low[1] < 0.25 and high[1] > 1
    # A fixed lower part gives the interval of a mean.
    fixed = ratios(over[1:], torch.full((4,), 2.0))
    plain = intervals(over[1:] / 2)
    for ours, theirs in zip(fixed, plain, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=0.1)


def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says():
    rng, hits = torch.Generator().manual_seed(0), 0
    for seed in range(200):
        under = 2 + torch.randn(30, generator=rng)
        over = under + torch.randn(30, generator=rng)  # 1 of the lower part, on average
        _, low, high = ratios(over[None], under, seed)
        hits += bool(low[0] <= 1 <= high[0])
    assert 178 <= hits <= 199


def test_draws_whose_lower_mean_is_not_positive_say_nothing():
    under = torch.tensor([-1.0, 3.0])
    assert all(bound.isnan().all() for bound in ratios(torch.ones(3, 2), -under.abs())[1:])
    _, low, high = ratios(torch.ones(1, 2), under)  # drawn: -1, 1 or 3, of which the first is out
    assert low.item() == pytest.approx(1 / 3) and high.item() == pytest.approx(1)


def test_sets_that_differ_widen_the_interval_over_prompts():
    values = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    apart = values + torch.arange(8)[:, None]  # each set has a level of its own
    both, pooled = over_both(apart), interval(apart.flatten())
    assert both.mean == pytest.approx(apart.mean().item())
    assert both.high - both.low > 2 * (pooled.high - pooled.low)
    none = over_both(torch.zeros(8, 16))  # exact, of 16 prompts: 1 - 0.025 ** (1 / 16)
    assert (none.low, none.high) == (0, pytest.approx(0.206, abs=0.001))


def test_groups_that_count_as_drawn_widen_what_they_differ_by():
    """Coverage of the mean of all groups there might be, by 6 groups of 5 prompts."""
    rng = np.random.default_rng(3)
    groups = np.arange(30) % 6
    hit = {"groups": 0, "prompts": 0}
    for _ in range(400):
        values = 1 + rng.normal(0, 1, 6)[groups] + rng.normal(0, 0.5, 30)
        values = torch.tensor(values)[None]
        (low,), (high,) = over_groups(values, torch.ones(30), groups)
        _, (own_low,), (own_high,) = intervals(values)
        hit["groups"] += bool(low <= 1 <= high)
        hit["prompts"] += bool(own_low <= 1 <= own_high)
    assert 0.92 < hit["groups"] / 400 < 0.98 and hit["prompts"] / 400 < 0.75


def test_with_a_group_for_each_value_the_bounds_are_students():
    values = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    low, high = over_groups(values, torch.ones(4), [7, 3, 5, 1])
    expected = t.interval(0.95, 3, values.mean().item(), sem(values[0].numpy()))
    assert (low.item(), high.item()) == pytest.approx(expected)
    under = torch.tensor([1.0, 2.0, 3.0, 6.0])
    low, high = over_groups(under[None] / 2, under, [0, 0, 1, 1])
    assert (low.item(), high.item()) == pytest.approx((0.5, 0.5))  # a share that never varies
    assert all(bound.isnan() for bound in over_groups(values, torch.ones(4), [0] * 4))


def test_the_share_of_variance_between_groups():
    rng = np.random.default_rng(0)
    groups = np.arange(600) % 60
    for among in (0.0, 1.0, 3.0):  # standard deviations; 1 within
        values = rng.normal(0, among, 60)[groups] + rng.normal(0, 1, 600)
        share = between_groups(torch.tensor(values), groups)
        assert share == pytest.approx(among**2 / (among**2 + 1), abs=0.1)
    assert between_groups(torch.tensor([1.0, -1, 1, -1]), [0, 0, 1, 1]) == 0
    for values, of in (([1.0, 2, 3], [0, 1, 2]), ([1.0, 2], [0, 0]), ([2.0] * 4, [0, 0, 1, 1])):
        assert np.isnan(between_groups(torch.tensor(values), of))
