"""Circuits as data, and the bisection that finds a first one."""

from types import SimpleNamespace

import pytest
import torch

from seqcirc_utils import circuits
from seqcirc_utils.ablation import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.metrics import Scores

EVERYTHING = [Component(layer, head) for layer in range(5) for head in (0, 1, 2, None)]


def stub(score, baseline=2.0):
    """An evaluator whose circuits score by a known rule."""

    def kept(sets, progress=None):
        values = torch.tensor([[score(list(s))] * 3 for s in sets])
        return Scores(values, values > 0, values, values)

    return SimpleNamespace(intact=SimpleNamespace(logit_diff=torch.full((3,), baseline)), kept=kept)


@pytest.mark.parametrize("needed", [1, 2, 7, 19, 20])
def test_bisection_finds_the_smallest_size(needed):
    evaluator = stub(lambda s: 2.0 if len(s) >= needed else 1.0)
    found, tried = circuits.first_circuit(evaluator, EVERYTHING, 0.8)
    assert found == EVERYTHING[:needed] and tried[needed] == 1.0
    assert all(value == 0.5 for size, value in tried.items() if size < needed)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.5])
def test_a_threshold_that_means_nothing_is_refused(threshold):
    with pytest.raises(UserError, match="threshold"):
        circuits.first_circuit(stub(len), EVERYTHING, threshold)


def test_a_model_that_cannot_do_the_task_is_refused():
    with pytest.raises(UserError, match="logit difference"):
        circuits.first_circuit(stub(len, baseline=-1.0), EVERYTHING, 0.8)
    with pytest.raises(UserError, match="logit difference"):
        circuits.faithfulness(stub(len, baseline=0.0), EVERYTHING)


def test_circuits_survive_the_disk(tmp_path):
    heads, mlps = circuits.split([Component(3, None), Component(4, 2), Component(4, 0)])
    circuit = circuits.Circuit(
        "tiny", "months", "test", "mean", 0.8, 4, 0, heads, mlps, dict(mean=1.0, low=0.9, high=1.1)
    )
    back = circuits.Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert back == circuit
    assert back.components == {Component(3, None), Component(4, 2), Component(4, 0)}
    assert str(back) == "months: 2 heads, 1 MLPs, faithfulness 1.00 [0.90, 1.10]"


def test_random_circuits_match_in_size_and_repeat():
    circuit = EVERYTHING[:6]
    draws = circuits.random_like(circuit, EVERYTHING, 8, seed=1)
    assert draws == circuits.random_like(circuit, EVERYTHING, 8, seed=1)
    assert len({tuple(sorted(map(str, draw))) for draw in draws}) > 1
    for draw in draws:
        assert [len(part) for part in circuits.split(draw)] == [
            len(part) for part in circuits.split(circuit)
        ]
        assert len(set(draw)) == len(draw)


def test_p_values_are_never_zero():
    assert circuits.percentile_p(2.0, [0.0, 1.0, 1.5]) == 0.25
    assert circuits.percentile_p(1.0, [0.0, 1.0, 1.5]) == 0.75
