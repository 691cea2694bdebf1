"""MIB's numbers of a circuit made by hand, step by step as it defines them; its files, there and
back."""

import dataclasses
import json

import numpy as np
import pytest
from oracles import plain_logits

from seqcirc_utils.ablation.evaluator import Evaluator, logit_difference
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.methods import benchmark, mib_format
from seqcirc_utils.methods.slopes import Pairs


@pytest.fixture(scope="module")
def asked(gpt2, sets, means):
    """Model, prompts with answers that it has a lead for, partners, and both judges."""
    rows = range(1, 4)
    clean, corrupted = sets.evaluation[rows], sets.corrupted[rows]
    other = record(gpt2, corrupted).activations
    whole, empty = (plain_logits(gpt2, clean, names, other) for names in ([], components(gpt2)))
    last = plain_logits(gpt2, corrupted, [], None)
    answers = (whole - last).argmax(-1)
    below = whole < whole.gather(-1, answers[:, None])
    lasts = last.masked_fill(~below, -1e9).argmax(-1)
    chosen = dataclasses.replace(clean, answer_ids=answers, last_ids=lasts)
    pairs = Pairs.recorded(gpt2, chosen, corrupted)
    mean = Evaluator(gpt2, chosen, means["gpt2"])
    ends = record(gpt2, sets.means).residual[-1].mean(0, keepdim=True)
    judges = {
        "counterfactual": benchmark.Judge.counterfactual(pairs),
        "mean": benchmark.Judge.mean(mean, ends, logit_difference),
    }
    return gpt2, chosen, corrupted, judges, other


def plain(model, prompts, answers, names=(), replacement=None):
    logits = plain_logits(model, prompts, names, replacement)
    rows = range(len(prompts))
    return logits[rows, answers.answer_ids] - logits[rows, answers.last_ids]


@pytest.mark.parametrize("kind", ["counterfactual", "mean"])
def test_mib_by_its_definition_on_a_circuit_made_by_hand(asked, means, kind):
    """A score of 1 for a hand-made circuit's parts, 0 for all else; every step a plain pass."""
    model, clean, corrupted, judges, other = asked
    circuit = [Component(0, 2), Component(1, None), Component(2, 1)]
    everything, judge = components(model), judges[kind]
    values = np.array([float(c in circuit) for c in everything])
    ranked = benchmark.ranking(model, values)
    assert ranked[:3] == circuit
    # By hand: 15 nodes, so 0 0 0 0 0 0 1 3 7 15 of them; the embedding is always in.
    replacement = other if kind == "counterfactual" else means["gpt2"]
    whole = plain(model, clean, clean).mean().item()
    if kind == "counterfactual":
        empty = plain(model, corrupted, clean).mean().item()
    else:
        empty = judge.empty.mean().item()
    expected = []
    for size in (0, 0, 0, 0, 0, 0, 1, 3, 7, 15):
        out = [c for c in everything if c not in ranked[:size]]
        left = plain(model, clean, clean, out, replacement).mean().item()
        expected.append((left - empty) / (whole - empty))
    sizes = benchmark.sizes(len(everything))
    found = judge.faithfulness(judge.kept([ranked[:size] for size in sizes]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert found[-1] == pytest.approx(1, abs=1e-5)
    # Both prompts of a pair end in one token, and the mean too: the embedding alone says nothing.
    assert found[0] == pytest.approx(0, abs=1e-5) and abs(found[6]) > 1e-3
    steps = np.diff([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    cpr = sum(s * (a + b) / 2 for s, a, b in zip(steps, expected, expected[1:], strict=False))
    far = [abs(1 - x) for x in expected]
    cmd = sum(s * (a + b) / 2 for s, a, b in zip(steps, far, far[1:], strict=False))
    assert benchmark.areas(found) == pytest.approx((cpr, cmd), rel=1e-3)
    # It is not the ratio of the published paper.
    share = judge.kept([circuit]).mean() / judge.whole.mean()
    assert abs(share.item() - expected[7]) > 1e-3


def test_the_mean_of_the_empty_circuit_is_the_mean_last_stream(asked, sets):
    """The logits read the sum of all mean writes, the mean embedding's too."""
    model, clean, _, judges, _ = asked
    run = record(model, sets.means)
    total = run.residual[0].mean(0)
    for layer in range(model.n_layers):
        total = total + run.heads(layer, run.activations.z[layer].mean(0, keepdim=True))[0]
        total = total + run.activations.mlp[layer].mean(0)
    expected = judges["mean"].evaluator.difference(total.expand(1, 3, -1, -1))[0]
    np.testing.assert_allclose(judges["mean"].empty, expected.detach(), rtol=1e-3, atol=1e-4)


def test_perfect_circuits_score_the_ends():
    assert benchmark.areas([1.0] * 10) == pytest.approx((0.999, 0.0))
    assert benchmark.areas([0.0] * 10) == pytest.approx((0.0, 0.999))
    assert benchmark.areas([2.0] * 10) == pytest.approx((1.998, 0.999))  # overshoot: CPR only
    assert benchmark.sizes(300) == [0, 0, 1, 3, 6, 15, 30, 60, 150, 300]


def test_nodes_are_ranked_by_score_or_by_size(gpt2):
    values = np.array([-3.0, 2, 0, 1, 0, -1, *[0] * 9])
    best = benchmark.ranking(gpt2, values)[:3]
    assert [str(c) for c in best] == ["0.1", "0.3", "0.2"]
    best = benchmark.ranking(gpt2, values, absolute=True)[:3]
    assert [str(c) for c in best] == ["0.0", "0.1", "0.3"]
    for wrong in (values[:3], values * np.nan):
        with pytest.raises(UserError, match="15 finite numbers"):
            benchmark.ranking(gpt2, wrong)


def test_edges_of_a_node_circuit_are_counted_as_the_benchmark_counts(gpt2):
    nodes = [Component(0, 2), Component(0, None), Component(2, 1)]
    # readers: 3 + 1 + 3 and the logits; writers: the embedding and three
    assert benchmark.weighted_edge_count(nodes, gpt2) == 4 * 8
    # input 8; 0.2 into mlp0, 2.1 (3), logits; mlp0 into 2.1 (3), logits; 2.1 into logits
    assert benchmark.weighted_edge_count(nodes, gpt2, possible_only=True) == 8 + 5 + 4 + 1
    everything = mib_format.Sizes(3, 4, 32).edges()
    count = benchmark.weighted_edge_count(components(gpt2), gpt2, possible_only=True)
    assert count == len(everything)
    with pytest.raises(UserError, match=r"9\.9"):
        benchmark.weighted_edge_count([Component(9, 9)], gpt2)


def test_a_model_without_a_lead_is_refused(asked):
    judge = dataclasses.replace(asked[3]["mean"], empty=asked[3]["mean"].whole + 1)
    with pytest.raises(CannotDo, match="not ahead of the empty circuit"):
        judge.faithfulness(judge.empty)


def test_circuit_files_come_back_as_they_were(tmp_path):
    sizes, rng = mib_format.Sizes(2, 3, 12), np.random.default_rng(0)
    edges = np.full((len(sizes.writers), len(sizes.readers)), np.nan)
    for place in sizes.edges():
        edges[place] = rng.normal()
    nodes = np.array([np.nan, *rng.normal(size=8)])
    kept = {"input", "a0.h1", "m1", "a0.h1->m1", "input->a1.h2<k>"}
    given = mib_format.Scores(sizes, nodes, edges, kept)
    path = mib_format.save(given, tmp_path / "importances.json")
    again = mib_format.load(path)
    assert again.sizes == sizes and again.kept == kept
    np.testing.assert_array_equal(again.nodes, nodes)
    np.testing.assert_array_equal(again.edges, edges)
    data = json.loads(path.read_text())
    assert data["cfg"] == {"n_layers": 2, "n_heads": 3, "d_model": 12, "parallel_attn_mlp": False}
    assert list(data["nodes"])[:5] == ["input", "a0.h0", "a0.h1", "a0.h2", "m0"]
    assert "score" not in data["nodes"]["input"] and data["nodes"]["m0"]["in_graph"] is False
    assert set(data["edges"]["a0.h1->a1.h2<q>"]) == {"score", "in_graph"}
    alone = mib_format.of_components(sizes, nodes[1:], [Component(1, None)])
    back = mib_format.load(mib_format.save(alone, path))
    np.testing.assert_array_equal(back.nodes, nodes)
    assert back.kept == {"input", "m1"} and not np.nansum(np.abs(back.edges))


def test_a_file_as_the_benchmark_writes_it_is_read(tmp_path):
    """Made by hand in its form: attention and MLP side by side, NaN for a node without a score."""
    text = (
        '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 8, "parallel_attn_mlp": true, "x": 1}, '
        '"nodes": {"input": {"in_graph": true, "score": NaN}, "a0.h0": {"in_graph": true, '
        '"score": 0.5}, "m0": {"in_graph": false, "score": -1.0}, "logits": {"in_graph": true}}, '
        '"edges": {"input->a0.h0<q>": {"score": 0.25, "in_graph": true}, '
        '"m0->logits": {"score": 2, "in_graph": false}}}'
    )
    path = tmp_path / "ioi.json"
    path.write_text(text)
    found = mib_format.load(path)
    assert np.isnan(found.nodes[0]) and found.nodes[1:].tolist() == [0.5, -1.0]
    assert found.edges[0, 0] == 0.25 and np.isnan(found.edges).sum() == 3 * 5 - 2
    assert found.kept == {"input", "a0.h0", "input->a0.h0<q>"}
    for old, new in (('"m0->logits"', '"a0.h0->m0"'), ('"score": 2, ', ""), ('"nodes"', '"knots"')):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match="no circuit file of MIB"):
            mib_format.load(path)
