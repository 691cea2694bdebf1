"""Contrasts, overlaps and frequencies against numbers known by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest

from seqcirc_utils.analyses import specificity


def test_the_strongest_are_those_of_the_highest_mean():
    scores = np.array([[3.0, 0.0], [1.0, 1.2], [-9.0, -9.0], [0.0, 5.0]])
    assert specificity.strongest(scores, 2).tolist() == [True, False, False, True]
    assert specificity.strongest(np.zeros((3, 2)), 1).tolist() == [True, False, False]


def test_overlaps_of_halves():
    """A task that agrees with itself and with a copy, and not with its opposite."""
    task = np.outer([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], np.ones(4))
    for other, expected in ((None, 1.0), (task, 1.0), (-task, 0.0)):
        assert (specificity.split_overlaps(task, other, 2, 9, 0) == expected).all()
    # Two kinds of prompts, so halves that hold one kind each find other parts.
    mixed = np.concatenate([task[:, :2], task[::-1, :2]], axis=1)
    assert 0 < specificity.split_overlaps(mixed, None, 2, 40, 0).mean() < 1


def test_chance_is_what_random_circuits_share():
    rng = np.random.default_rng(0)
    drawn = [[rng.permutation(60) < 12 for _ in range(2)] for _ in range(3000)]
    measured = np.mean([specificity.jaccard(*pair) for pair in drawn])
    assert specificity.chance(12, 60) == pytest.approx(measured, abs=0.01)


def test_inclusion_has_three_classes():
    found = np.zeros((40, 3), bool)
    found[:, 0], found[:20, 1], found[:1, 2] = True, True, True
    (sure, a), (half, b), (rare, c) = specificity.inclusion(found)
    assert (a, b, c) == ("in", "uncertain", "out")
    assert (sure.mean, half.mean, rare.mean) == (1, 0.5, 0.025)
    assert half.low == pytest.approx(binomtest(20, 40).proportion_ci().low, abs=1e-6)
    assert specificity.inclusion(found[:4])[0][1] == "uncertain"  # four repeats prove little


def test_pairs_of_repeats():
    found = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
    assert specificity.pairwise(found).tolist() == [1, pytest.approx(1 / 3), pytest.approx(1 / 3)]
    frame, row = specificity.stability(np.repeat(found[:1], 40, 0), list("abcd"))
    assert frame["component"].tolist() == ["a", "b"] and row["in"] == 2 and row["mean"] == 1


def test_parts_of_what_is_shared():
    def circuit(*names):
        return np.array([name in names for name in "abcdef"])

    which, expected = specificity.shared_parts(
        [circuit(*"abc"), circuit(*"abcd")],
        [circuit(*"abe")],
        [circuit(*"ad"), circuit(*"ae"), circuit(*"bc")],
    )
    assert which.tolist() == ["general", "template", "sequence", "", "", ""]
    often = 3 * (1 / 3) ** 2 * (2 / 3) + (1 / 3) ** 3  # two or three of three circuits of 2 of 6
    assert expected["general"] == pytest.approx(3 * often)
    assert expected["template"] == pytest.approx(3 * (1 - often) / 2)
    assert sum(expected.values()) == pytest.approx(3)


def test_contrasts_can_come_out_either_way():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (3, 2, 30))
    values = {t: noise[i] + [[0.5 + (t == "a")], [0.5]] for i, t in enumerate("abc")}
    ones = {task: np.ones(30) for task in "abc"}

    def contrast(triples):
        return specificity.contrast(values, ones, triples, 0)

    own, none = (contrast([(row, "a", ["b", "c"])]) for row in range(2))
    assert own.low > 0.8 and own.mean == pytest.approx(1, abs=0.1)
    assert none.low < 0 < none.high
    swapped = contrast([(0, "b", ["a"])])
    assert swapped.high < -0.8
    both = contrast([(0, "a", ["b", "c"]), (1, "a", ["b", "c"])])
    assert both.mean == pytest.approx((own.mean + none.mean) / 2)


def test_a_contrast_of_shares_resamples_the_whole_model_too():
    """A set that costs the same share of every prompt costs it for certain, however they differ."""
    whole = {"a": np.linspace(0.1, 5, 20), "b": np.linspace(3, 4, 20)}
    values = {"a": 0.75 * whole["a"][None], "b": 0.5 * whole["b"][None]}
    found = specificity.contrast(values, whole, [(0, "a", ["b"])], 0)
    assert list(vars(found).values()) == pytest.approx([0.25] * 3)
    whole["a"] = np.array([9.0] + [-1.0] * 4)  # in many draws there is nothing to be a share of
    values["a"] = 0.75 * whole["a"][None]
    found = specificity.contrast(values, whole, [(0, "a", ["b"])], 0)
    assert list(vars(found).values()) == pytest.approx([0.25] * 3)


def test_halves_of_the_same_prompts_have_none_in_common():
    """Noise alone: two metrics that say the same of each prompt agree no more than by chance."""
    noise = np.random.default_rng(0).normal(size=(200, 8))
    by_chance = specificity.chance(40, 200)
    apart = specificity.split_overlaps(noise, noise, 40, 200, 0, same_prompts=True)
    assert apart.mean() == pytest.approx(by_chance, abs=0.03)
    assert specificity.split_overlaps(noise, noise, 40, 200, 0).mean() > by_chance + 0.1


def test_agreement_is_what_two_rankings_share_of_what_each_shares_with_itself():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(100, 1))
    first, same, other = (
        part + rng.normal(scale=0.3, size=(100, 12))
        for part in (signal, 3 * signal, rng.permutation(signal))
    )
    share, variance = specificity.agreement(first, same, 20, 50, 0)
    assert share == pytest.approx(1, abs=0.15) and 0 < variance < 0.05
    share, _ = specificity.agreement(first, other, 20, 50, 0)
    assert abs(share) < 0.25


def test_the_variance_of_an_agreement_is_the_jackknifes():
    scores = np.random.default_rng(1).normal(size=(2, 30, 4)) + np.arange(30)[:, None] / 10
    share, variance = specificity.agreement(*scores, 6, 20, 3)
    without = [
        specificity.agreement(*(np.delete(s, i, 1) for s in scores), 6, 20, 3)[0] for i in range(4)
    ]
    assert variance == pytest.approx(3 * np.var(without))  # (n - 1) / n times the sum of squares
    both, *own = (
        specificity.split_overlaps(*pair, 6, 20, 3, same_prompts=True).mean()
        for pair in ((scores[0], scores[1]), (scores[0], None), (scores[1], None))
    )
    beyond = specificity.chance(6, 30)
    assert share == pytest.approx((both - beyond) / (np.mean(own) - beyond))


def test_an_agreement_of_few_prompts_has_no_variance_and_of_noise_no_share():
    scores = np.arange(20.0)[:, None] * np.ones((1, 2))
    share, variance = specificity.agreement(scores, scores, 4, 20, 0)
    assert share == 1 and np.isnan(variance)
    flip = np.stack([np.arange(20.0), -np.arange(20.0)], 1)  # halves agree on nothing
    assert np.isnan(specificity.agreement(flip, flip, 4, 20, 0)[0])
