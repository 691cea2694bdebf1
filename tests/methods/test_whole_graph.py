"""Edges of the whole model: against the edge evaluator, plain passes, and node scores."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import plain_logits

from seqcirc_utils.ablation.edges import EdgeEvaluator
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.methods import mib_format
from seqcirc_utils.methods.registry import scores
from seqcirc_utils.methods.slopes import Pairs, slopes
from seqcirc_utils.methods.whole_graph import edge_scores, exact_edges, sizes_of


@pytest.fixture(scope="module")
def pairs(tiny, sets):
    def make(name):
        clean, corrupted = sets.evaluation[range(3)], sets.corrupted[range(3)]
        ids = plain_logits(tiny[name], clean, [], None).topk(2).indices
        chosen = dataclasses.replace(clean, answer_ids=ids[:, 0], last_ids=ids[:, 1])
        return Pairs.recorded(tiny[name], chosen, corrupted), chosen, corrupted

    return {name: make(name) for name in ("gpt2", "llama")}


def places(model):
    """Edge of the evaluator of edge circuits to its place in the arrays."""
    sizes = sizes_of(model)
    writers, readers = sizes.writers, sizes.readers

    def place(edge):
        name = "logits" if edge.receiver is None else mib_format.node_name(edge.receiver)
        reader = f"{name}<{edge.source}>" if edge.source else name
        return writers.index(mib_format.node_name(edge.sender)), readers.index(reader)

    return place


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_estimates_are_those_of_the_edge_evaluator(pairs, name):
    """The same from other code: every edge of the circuit of all components, one by one."""
    own, *_ = pairs[name]
    graph = EdgeEvaluator(own.clean, components(own.clean.model))
    place, found = places(own.clean.model), edge_scores(own)
    expected = {place(edge): -value for edge, value in graph.estimate().items()}
    assert len(expected) == len(graph.edges)
    ours = np.array([found[at] for at in expected])
    np.testing.assert_allclose(ours, list(expected.values()), rtol=2e-3, atol=1e-5)
    assert np.abs(ours).max() > 1e-2
    # All others are the embedding's, or there is no such edge.
    assert (~np.isnan(found)).sum() == len(expected) + len(sizes_of(own.clean.model).readers)
    assert (~np.isnan(found[0])).all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("n_steps", [0, 3])
def test_a_writers_edges_sum_to_its_score(pairs, name, n_steps):
    own, clean, corrupted = pairs[name]
    method = "EAP-IG inputs" if n_steps else "attribution patching"
    nodes = scores(own.clean.model, clean, corrupted, method=method, n_steps=n_steps or 5).values
    found = np.nansum(edge_scores(own, n_steps), 1)
    np.testing.assert_allclose(found[1:], nodes, rtol=2e-3, atol=1e-4)
    if not n_steps:
        _, slope = slopes(own, own.between(1.0))
        change = own.between(1.0) - own.between(0.0)
        assert found[0] == pytest.approx((change * slope).sum((1, 2)).mean().item(), rel=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exact_edges_are_single_cuts(pairs, name):
    own, *_ = pairs[name]
    graph = EdgeEvaluator(own.clean, components(own.clean.model))
    place = places(own.clean.model)
    chosen = graph.edges[::9] if name == "gpt2" else graph.edges[::11]
    kinds = {e.source or str(e.receiver is None) for e in chosen}
    assert kinds == {"q", "k", "v", "True", "False"}
    without = graph.without([[e] for e in chosen]).mean(1)
    expected = own.clean.intact.logit_diff.mean() - without
    found = exact_edges(own, [place(e) for e in chosen])
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-3)
    assert np.abs(found).max() > 1e-2


def test_an_edge_of_the_embedding_by_a_plain_pass(pairs):
    """Into an MLP: what the MLP reads, less the change, with hooks and whole passes."""
    own, clean, corrupted = pairs["llama"]
    model, kept = own.clean.model, {}

    def keep(value, hook):
        kept[hook.name] = value

    with torch.no_grad():
        for prompts, name in ((clean, "clean"), (corrupted, "corrupted")):
            hook = ("blocks.0.hook_in", lambda v, hook, name=name: kept.update({name: v.clone()}))
            model.bridge.run_with_hooks(prompts.tokens, fwd_hooks=[hook])
        change = kept["clean"] - kept["corrupted"]
        handle = model.bridge.blocks[1].ln2.register_forward_pre_hook(
            lambda module, inputs: (inputs[0] - change,)
        )
        try:
            logits = model.bridge(clean.tokens)[:, -1]
        finally:
            handle.remove()
    rows = range(3)
    patched = logits[rows, clean.answer_ids] - logits[rows, clean.last_ids]
    expected = (own.clean.intact.logit_diff - patched).mean()
    reader = sizes_of(model).readers.index("m1")
    assert exact_edges(own, [(0, reader)])[0] == pytest.approx(expected.item(), abs=1e-4)
    assert abs(expected) > 1e-3


def test_models_whose_writes_are_no_sum_are_refused(tiny, sets):
    own = Pairs.recorded(tiny["gemma2"], sets.evaluation[range(2)], sets.corrupted[range(2)])
    with pytest.raises(UserError, match="edges do not apply"):
        edge_scores(own)


def test_there_are_as_many_edges_as_the_model_has(tiny):
    """122,370 between the components of the default model, and as many of the embedding as there
    are readers."""
    default = mib_format.Sizes(30, 9, 576)
    assert len(default.edges()) == 122_370 + 30 * 28 + 1
    small = sizes_of(tiny["gpt2"])
    assert small.writers[:6] == ["input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0"]
    assert Component(0, 1) == components(tiny["gpt2"])[1]
