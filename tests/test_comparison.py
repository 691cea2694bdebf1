"""Overlap against chance, checked with scipy and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from seqcirc_utils import comparison
from seqcirc_utils.ablation import Component


def heads(*numbers):
    return {Component(n // 10, n % 10) for n in numbers}


def test_two_sets_follow_the_hypergeometric_law():
    found = comparison.overlap([heads(*range(10)), heads(*range(5, 20))], total=100)
    assert len(found.shared) == 5
    assert found.expected == pytest.approx(1.5)
    assert found.p == pytest.approx(hypergeom.sf(4, 100, 10, 15))


def test_three_sets_agree_with_simulation():
    sizes, total = (12, 9, 15), 30
    sets = [
        heads(*range(3)) | heads(*range(10 * i + 3, 10 * i + 3 + s - 3))
        for i, s in enumerate(sizes)
    ]
    sets = [set(sorted(s)[:size]) for s, size in zip(sets, sizes, strict=True)]
    found = comparison.overlap(sets, total)
    rng = np.random.default_rng(0)
    draws = [
        len(set.intersection(*(set(rng.choice(total, s, replace=False)) for s in sizes)))
        for _ in range(4000)
    ]
    assert found.expected == pytest.approx(np.mean(draws), abs=0.06)
    assert found.p == pytest.approx(np.mean(np.array(draws) >= len(found.shared)), abs=0.03)


def test_sets_that_hold_everything_share_everything():
    everything = heads(*range(10))
    found = comparison.overlap([everything] * 3, total=10)
    assert found.p == pytest.approx(1.0) and found.expected == pytest.approx(10)


def test_table_keeps_heads_and_mlps_apart():
    mlps = {Component(0, None), Component(1, None)}
    circuits = {"a": heads(1, 2) | mlps, "b": heads(2, 3), "c": heads(2) | mlps}
    table = comparison.overlap_table(circuits, {"heads": 20, "MLPs": 4})
    assert len(table) == 8
    row = table[(table["kind"] == "MLPs") & (table["tasks"] == "a & c")].iloc[0]
    assert row["shared"] == 2 and row["jaccard"] == 1
    row = table[(table["kind"] == "heads") & (table["tasks"] == "a & b & c")].iloc[0]
    assert row["shared"] == 1 and row["sizes"] == "2, 2, 1"


def test_importance_is_compared_by_rank():
    effects = pd.DataFrame({"a": [1.0, 2, 3], "b": [1.0, 4, 90], "c": [3.0, 2, 1]})
    table = comparison.importance_correlation(effects)
    assert table.loc["a", "b"] == pytest.approx(1) and table.loc["a", "c"] == pytest.approx(-1)
