"""Areas with intervals, smallest circuits, agreement, AUROC: by hand, and on planted circuits."""

import numpy as np
import pytest
import torch

from seqcirc_utils.ablation.replay import record
from seqcirc_utils.components import Component
from seqcirc_utils.methods import benchmark, evaluation
from seqcirc_utils.methods.evaluation import Circuits, agreement, auroc, smallest
from seqcirc_utils.methods.recovery import recovery
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.prompts import drawing


class Made:
    """A judge whose metric is made up: prompt i keeps (i + 1) x size / 100, up to its whole."""

    whole = torch.tensor([1.0, 2.0, 3.0])
    empty = torch.zeros(3)
    asked = 0

    def kept(self, circuits):
        self.asked += len(circuits)
        size = torch.tensor([float(len(c)) for c in circuits])
        return torch.minimum(size[:, None] / 100, torch.ones(())) * self.whole

    def faithfulness(self, values):
        return benchmark.Judge.faithfulness(self, values)


RANKING = [Component(i // 10, i % 10) for i in range(300)]


def test_areas_and_smallest_circuits_of_a_made_up_judge():
    circuits = Circuits(Made())
    curve, (cpr, cmd) = circuits.areas(RANKING)
    expected = [min(1, k / 100) for k in benchmark.sizes(300)]
    np.testing.assert_allclose(curve, expected, rtol=1e-6)
    assert (cpr.mean, cmd.mean) == pytest.approx(benchmark.areas(expected))
    assert cpr.low == pytest.approx(cpr.mean) == cpr.high  # prompts agree on the share
    before = circuits.judge.asked
    circuits.areas(RANKING)
    assert circuits.judge.asked == before  # each circuit is judged once
    found = smallest(circuits, {"one": RANKING, "other": RANKING[::-1]}, 0.8)
    for one in found.values():
        assert one.size.mean == pytest.approx(81, abs=2) and one.share.mean >= 0.8 - 1e-6
        assert one.size.low <= one.size.mean <= one.size.high


def test_intervals_are_those_of_a_plain_bootstrap():
    made = Made()
    made.kept = lambda circuits: torch.tensor(
        [[0.2, 1.9, 3.0] if len(c) < 300 else [1.0, 2.0, 3.0] for c in circuits]
    )
    _, (cpr, _) = Circuits(made).areas(RANKING, seed=3)
    rows = np.random.default_rng(3).integers(3, size=(evaluation.DRAWS, 3))
    draws = []
    for row in rows:
        share = np.array([0.2, 1.9, 3.0])[row].sum() / np.array([1.0, 2.0, 3.0])[row].sum()
        draws.append(benchmark.areas([share] * 9 + [1.0])[0])
    low, high = np.quantile(draws, (0.025, 0.975))
    assert (cpr.low, cpr.high) == pytest.approx((low, high)) and low < cpr.mean < high


def test_agreement_by_hand():
    exact = np.arange(10.0)
    assert agreement(exact, exact) == {"spearman": pytest.approx(1), "recall": 1}
    assert agreement(-exact, exact) == {"spearman": pytest.approx(-1), "recall": 0}
    part = np.array([0, 1, 2, 3, 4, 5, 9, 6, 7, 8.0])  # of 9, 8, 7 it names 9 and 8 and 6
    assert agreement(part, exact)["recall"] == pytest.approx(2 / 3)
    assert np.isnan(agreement(np.ones(10), exact)["spearman"])


def test_auroc_by_hand():
    works = np.array([True, True, False, False])
    assert auroc(np.array([2, -3, 1, 0]), works) == 1  # against the answer counts as well
    assert auroc(np.array([0, 1, 2, 3]), works) == 0
    assert auroc(np.zeros(4), works) == 0.5
    assert auroc(np.array([2, 0, 1, 0]), works) == pytest.approx(2.5 / 4)


@pytest.fixture(scope="module", params=["path", "pair", "negative"])
def recovered(request):
    known = PLANTED[request.param]
    model = known.build("months")
    sets = drawing.prompt_sets(model, "months", n_prompts=4, n_means=16)
    means = record(model, sets.means).activations.mean()
    table = recovery(model, sets, means, known.circuit, known.smallest, 0.8)
    return request.param, table.set_index("method")


def test_methods_on_planted_circuits(recovered):
    """Single ablation is blind to a redundant pair; the negative head counts by its size."""
    name, table = recovered
    assert len(table) == 11 and table["auroc"].dropna().between(0, 1).all()
    exact = table.loc["exact ablation"]
    if name == "pair":  # either alone suffices, so neither is missed
        assert not exact["recovered"] and exact["auroc"] < 1
        assert table.loc["published sweep", "recovered"] and table.loc["ranked search", "recovered"]
    else:
        assert exact["recovered"] and exact["auroc"] == 1
    if name == "negative":  # the one-sided sweep throws out a head that works
        assert not table.loc["published sweep", "recovered"]
    assert not table.loc["random", "recovered"]
