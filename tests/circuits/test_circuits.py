"""Circuits as data, and random circuits of their shape."""

from seqcirc_utils import components, statistics
from seqcirc_utils.circuits import chance
from seqcirc_utils.circuits import circuit as circuit_module
from seqcirc_utils.components import Component

EVERYTHING = [Component(layer, head) for layer in range(5) for head in (0, 1, 2, None)]


def test_circuits_survive_the_disk(tmp_path):
    heads, mlps = components.split([Component(3, None), Component(4, 2), Component(4, 0)])
    circuit = circuit_module.Circuit(
        "tiny", "months", "test", "mean", 0.8, 4, 0, heads, mlps, dict(mean=1.0, low=0.9, high=1.1)
    )
    back = circuit_module.Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert back == circuit
    assert back.components == {Component(3, None), Component(4, 2), Component(4, 0)}
    assert str(back) == "months: 2 heads, 1 MLPs, faithfulness 1.00 [0.90, 1.10]"


def test_random_circuits_match_in_size_and_repeat():
    circuit = EVERYTHING[:6]
    draws = chance.random_like(circuit, EVERYTHING, 8, seed=1)
    assert draws == chance.random_like(circuit, EVERYTHING, 8, seed=1)
    assert len({tuple(sorted(map(str, draw))) for draw in draws}) > 1
    for draw in draws:
        assert [len(part) for part in components.split(draw)] == [
            len(part) for part in components.split(circuit)
        ]
        assert len(set(draw)) == len(draw)


def test_random_circuits_by_layer_keep_the_layers_and_the_mlps():
    circuit = [*EVERYTHING[1:4], EVERYTHING[8]]
    for draw in chance.random_like(circuit, EVERYTHING, 8, seed=1, by_layer=True):
        assert [c.layer for c in draw if c.head is not None] == [0, 0, 2]
        assert [c for c in draw if c.head is None] == [Component(0, None)]


def test_p_values_are_never_zero():
    assert statistics.percentile_p(2.0, [0.0, 1.0, 1.5]) == 0.25
    assert statistics.percentile_p(1.0, [0.0, 1.0, 1.5]) == 0.75
