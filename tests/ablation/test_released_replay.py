"""The released code's ablations: against plain passes, and against what was meant."""

import pytest
import torch
from oracles import evaluator_of, plain_hooks

from seqcirc_utils.ablation import released, replay
from seqcirc_utils.ablation.edges import EdgeEvaluator
from seqcirc_utils.ablation.released_edges import PIECES, ReleasedEdges
from seqcirc_utils.ablation.replay import Activations
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError

NODES = [Component.parse(n) for n in "0.0 0.1 0.3 mlp0 1.1 1.2 1.3 mlp1 2.0 2.1 mlp2".split()]


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny):
    return tiny[request.param]


def means_plainly(model, prompts, heads):
    """MLPs' means on prompts whose heads are ablated, the slow way: whole passes with hooks."""
    means = replay.record(model, prompts).activations.mean()
    found = []
    hooks = plain_hooks(heads, means)
    for layer in range(model.n_layers):
        name = f"blocks.{layer}.hook_mlp_out"
        hooks.append((name, lambda value, hook: found.append(value.mean(0, keepdim=True))))
    with torch.no_grad():
        model.bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)
    return Activations(means.z, torch.stack(found))


def test_means_of_mlps_shift_with_the_heads_removed(model, sets):
    corrupted = replay.record(model, sets.means)
    evaluator = evaluator_of(model, sets.discovery, corrupted.activations.mean())
    pruning = released.ReleasedPruning(evaluator, corrupted)
    kept: set[Component] = set()
    trials = ["2.1", "mlp1", "1.2", "0.3", "mlp2", "mlp0", "1.0"]
    for i, name in enumerate(trials):
        names = kept | {Component.parse(name)}
        means = means_plainly(model, sets.means, [c for c in names if c.head is not None])
        slow = evaluator.with_(replacement=means).replaced([names]).logit_diff[0]
        found = pruning.try_without({Component.parse(name)})
        torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-5)
        if i % 3 != 2:  # some trials are refused
            pruning.accept()
            kept = names
    again = released.ReleasedPruning(evaluator, corrupted, kept)
    torch.testing.assert_close(again.score, pruning.score, atol=1e-5, rtol=1e-5)
    plain = evaluator.replaced([kept]).logit_diff[0]
    assert (plain - pruning.score).abs().max() > 1e-3  # the fault is felt
    whole = means_plainly(model, sets.means, heads := [c for c in kept if c.head is not None])
    shifted = released.shifted_means(evaluator.replacement, corrupted, heads)
    torch.testing.assert_close(shifted.mlp, whole.mlp, atol=1e-5, rtol=1e-5)


def test_no_piece_of_the_released_step_is_the_step_meant(model, sets):
    means = replay.record(model, sets.means).activations.mean()
    evaluator = evaluator_of(model, sets.evaluation, means)
    corrupted = replay.record(model, sets.corrupted)
    meant = EdgeEvaluator(evaluator, NODES)
    found = ReleasedEdges(evaluator, NODES, corrupted, pieces=())
    assert found.edges == meant.edges
    expected = meant.without([[e] for e in meant.edges]).mean(1)
    torch.testing.assert_close(found.without(found.edges), expected, atol=1e-5, rtol=1e-5)
    # Each piece changes something, and only where it says so.
    for piece in PIECES:
        with_it = ReleasedEdges(evaluator, NODES, corrupted, [piece])
        scores = dict(zip(with_it.edges, with_it.without(with_it.edges), strict=True))
        moved = {
            e
            for e, score in zip(meant.edges, expected, strict=True)
            if e not in scores or abs(scores[e] - score) > 1e-5
        }
        assert moved, piece
        if piece in ("B12", "B13", "nothing frozen"):
            assert all(e.sender.head is None for e in moved)
        if piece in ("MLPs anew", "own layer"):
            assert all(e.sender.head is not None for e in moved)


def test_cuts_of_little_effect_are_estimated(model, sets):
    corrupted = replay.record(model, sets.corrupted)
    evaluator = evaluator_of(
        model, sets.evaluation, replay.record(model, sets.means).activations.mean()
    )
    circuit = ReleasedEdges(evaluator, NODES, corrupted)
    exact, estimated = (circuit.without(circuit.edges, screen) for screen in (0.0, 1e9))
    inner = torch.tensor([e.receiver is not None for e in circuit.edges])
    assert torch.equal(exact[~inner], estimated[~inner])
    off = (exact - estimated).abs()[inner]
    size = (exact - circuit.score.mean()).abs()[inner]
    assert 0 < off.max() and off.mean() < 0.5 * size.mean()
    some = circuit.without(circuit.edges, float(size.median()))
    ran = (estimated - circuit.score.mean()).abs() >= float(size.median())
    torch.testing.assert_close(some, torch.where(ran | ~inner, exact, estimated))
    assert 0 < ran[inner].float().mean() < 1


def test_what_does_not_fit_is_refused(gpt2, sets):
    means = replay.record(gpt2, sets.means)
    evaluator = evaluator_of(gpt2, sets.evaluation, means.activations.mean())
    with pytest.raises(UserError, match="as many"):
        ReleasedEdges(evaluator, NODES, means)
    with pytest.raises(UserError, match="unknown pieces"):
        ReleasedEdges(evaluator, NODES, replay.record(gpt2, sets.corrupted), ["B99"])
    with pytest.raises(UserError, match="unknown component"):
        ReleasedEdges(evaluator, [Component(9, 0)], replay.record(gpt2, sets.corrupted))
