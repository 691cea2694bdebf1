"""Scores by every method: held to plain passes with hooks, and to what is known of each method."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from oracles import plain_hooks, plain_logits

from seqcirc_utils.ablation.evaluator import Evaluator, logit_difference
from seqcirc_utils.ablation.metrics import answer_log_prob, minus_kl
from seqcirc_utils.ablation.replay import Activations, record
from seqcirc_utils.circuits import search
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.methods import registry
from seqcirc_utils.methods.registry import METHODS, order_of_removal, scores
from seqcirc_utils.methods.relevance import relevance_rules
from seqcirc_utils.methods.slopes import Pairs, slopes

EVERY = ("gpt2", "llama", "gemma2")


@pytest.fixture(scope="module")
def asked(tiny, sets):
    """By architecture: model, clean prompts with answers that it has a lead for, and corrupted."""

    def ask(name):
        rows = range(3)
        clean = sets.evaluation[rows]
        ids = plain_logits(tiny[name], clean, [], None).topk(2).indices
        return tiny[name], dataclasses.replace(clean, answer_ids=ids[:, 0], last_ids=ids[:, 1])

    return {name: (*ask(name), sets.corrupted[range(3)]) for name in EVERY}


def plain_metric(logits, prompts):
    rows = range(len(prompts))
    return logits[rows, prompts.answer_ids] - logits[rows, prompts.last_ids]


def plain_run(model, prompts, share=None, other=None, hooks=()):
    """A whole pass: the metric of the clean answers, and every write with its slope."""
    kept, handles = {}, list(hooks)

    def keep(value, hook, name):
        value = value if value.requires_grad else value.detach().requires_grad_()
        value.retain_grad()
        kept[name] = value
        return value

    def begin(value, hook):
        start = value if share is None else other + share * (value - other)
        kept["embed"] = start.detach().requires_grad_()
        return kept["embed"]

    handles.append(("blocks.0.hook_in", begin))
    for layer in range(model.n_layers):
        for name in (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"):
            handles.append((name, functools.partial(keep, name=name)))
    logits = model.bridge.run_with_hooks(prompts.tokens, fwd_hooks=handles)[:, -1]
    metric = plain_metric(logits, prompts)
    metric.sum().backward()
    return metric.detach(), kept


def plain_products(model, clean, corrupted, slope):
    """(Clean - corrupted) times slope, component by component ``[component, n]``."""
    found = []
    for c in components(model):
        name = f"blocks.{c.layer}.{'hook_mlp_out' if c.head is None else 'attn.hook_z'}"
        one = (clean[name] - corrupted[name]).detach() * slope[name].grad
        found.append((one if c.head is None else one[:, :, c.head]).flatten(1).sum(1))
    return torch.stack(found).mean(1).numpy()


@pytest.fixture(scope="module")
def plain(asked):
    """By architecture: runs of clean and corrupted prompts, the slow way."""
    found = {}
    for name, (model, clean, corrupted) in asked.items():
        marked = dataclasses.replace(
            corrupted, answer_ids=clean.answer_ids, last_ids=clean.last_ids
        )
        found[name] = plain_run(model, clean), plain_run(model, marked)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_attribution_patching_is_gradient_times_difference(asked, plain, name):
    model, clean, corrupted = asked[name]
    (_, own), (_, other) = plain[name]
    expected = plain_products(model, own, other, own)
    found = scores(model, clean, corrupted, method="attribution patching")
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(expected).max() > 1e-3 and found.passes == 4 * 3
    both = (plain_products(model, own, other, run) for run in (own, other))
    averaged = scores(model, clean, corrupted, method="clean-corrupted")
    np.testing.assert_allclose(averaged.values, sum(both) / 2, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_ig_inputs_is_the_mean_gradient_on_the_way(asked, plain, name):
    model, clean, corrupted = asked[name]
    (_, own), (_, other) = plain[name]
    expected = 0
    for share, weight in ((0.5 - 0.5 / 3**0.5, 0.5), (0.5 + 0.5 / 3**0.5, 0.5)):  # Gauss, 2 points
        _, run = plain_run(model, clean, share, other["embed"].detach())
        expected = expected + weight * plain_products(model, own, other, run)
    found = scores(model, clean, corrupted, method="EAP-IG inputs", n_steps=2)
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-5)
    assert found.passes == 3 * (2 + 2 * 3)


@pytest.mark.parametrize("name", EVERY)
def test_integrated_gradients_sum_to_the_difference(asked, plain, name):
    """Completeness (Sundararajan et al., 2017), at the embedding, where the path is taken."""
    model, clean, corrupted = asked[name]
    (high, _), (low, _) = plain[name]
    pairs = Pairs.recorded(model, clean, corrupted)
    total = 0
    for place, weight in registry.steps(48):
        change = pairs.between(1.0) - pairs.between(0.0)
        total = total + weight * (change * slopes(pairs, pairs.between(place))[1]).sum((1, 2))
    torch.testing.assert_close(total, high - low, atol=0.02, rtol=0.02)
    one = (change * slopes(pairs, pairs.between(1.0))[1]).sum((1, 2))
    assert ((one - (high - low)).abs() > 2 * (total - (high - low)).abs()).all()


@pytest.mark.parametrize("name", EVERY)
def test_ig_activations_of_a_layer_sum_to_what_the_layer_does(asked, name, monkeypatch):
    model, clean, corrupted = asked[name]
    monkeypatch.setattr(registry, "LAYER_STEPS", 24)
    found = scores(model, clean, corrupted, method="EAP-IG activations").values
    other = Pairs.recorded(model, clean, corrupted).corrupted.activations
    groups = [[Component(1, h) for h in range(model.n_heads)], [Component(1, None)]]
    everything = components(model)
    for group in groups:
        whole, without = (
            plain_metric(plain_logits(model, clean, names, other), clean) for names in ([], group)
        )
        total = sum(found[everything.index(c)] for c in group)
        assert total == pytest.approx((whole - without).mean().item(), rel=0.02, abs=1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_exact_methods_are_plain_passes(asked, means, name):
    model, clean, corrupted = asked[name]
    whole = plain_metric(plain_logits(model, clean, [], None), clean)
    found = scores(model, clean, corrupted, method="exact ablation", means=means[name])
    back = scores(model, clean, corrupted, method="activation patching")
    own = Pairs.recorded(model, clean, corrupted).clean.run.activations
    empty = plain_metric(plain_logits(model, corrupted, [], None), clean)
    for i, c in list(enumerate(components(model)))[:: 4 if name == "gpt2" else 7]:
        left = plain_metric(plain_logits(model, clean, [c], means[name]), clean)
        assert found.values[i] == pytest.approx((whole - left).mean().item(), abs=1e-4)
        new = plain_metric(plain_logits(model, corrupted, [c], own), clean)
        assert back.values[i] == pytest.approx((new - empty).mean().item(), abs=1e-4)
    assert found.passes == 16 * 3 and found.seconds > 0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_relevance_rules_change_the_way_back_only(asked, plain, name, hooks_left):
    model, clean, corrupted = asked[name]
    before = hooks_left(model)
    pairs = Pairs.recorded(model, clean, corrupted)
    plain_way, _ = slopes(pairs, pairs.between(1.0))
    with relevance_rules(model):
        value = pairs.clean.difference(pairs.clean.replay([pairs.nothing()], pairs.between(1.0), 0))
        ruled, _ = slopes(pairs, pairs.between(1.0))
    torch.testing.assert_close(value[0], plain[name][0][0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ruled.mlp, plain_way.mlp, rtol=0.1)
    assert hooks_left(model) == before


def test_relevance_is_conserved(asked):
    """Without biases, the relevance of the embedding, and of all that the logits read, is the
    answer's lead."""
    model, clean, corrupted = asked["llama"]
    pairs = Pairs.recorded(model, clean, corrupted)
    with relevance_rules(model):
        slope, first = slopes(pairs, pairs.between(1.0))
    whole = pairs.clean.intact.logit_diff
    embedding = (pairs.between(1.0) * first).sum((1, 2))
    torch.testing.assert_close(embedding, whole, atol=1e-3, rtol=1e-3)
    gradient = (pairs.between(1.0) * slopes(pairs, pairs.between(1.0))[1]).sum((1, 2))
    assert ((gradient - whole).abs() > 0.01).all()  # a gradient conserves nothing


def test_relp_is_the_layerwise_rules_by_hand(asked):
    """The last MLP's relevance, layer by layer with plain tensors: half rule and frozen norms."""
    model, clean, corrupted = asked["llama"]
    pairs = Pairs.recorded(model, clean, corrupted)
    last = model.n_layers - 1
    own = pairs.clean.run
    stream = own.residual[-1][:, -1]  # what the final norm reads
    scale = stream.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    rows, weight = range(3), model.bridge.W_U
    direction = (weight[:, clean.answer_ids] - weight[:, clean.last_ids]).T  # [n, d_model]
    coefficient = direction * scale * model.bridge.ln_final.weight
    expected = (pairs.difference.mlp[last][rows, -1] * coefficient).sum(-1).mean()
    found = scores(model, clean, corrupted, method="RelP").values
    assert found[-1] == pytest.approx(expected.item(), rel=1e-3)
    # Heads of the last layer act through the MLP as well: gate and value get half each.
    mlp, middle = model.bridge.blocks[last].mlp, own.residual[-1] - own.activations.mlp[last]
    normed = model.bridge.blocks[last].ln2(middle[:, -1:])
    gate, value = mlp.gate(normed)[:, 0], getattr(mlp, "in")(normed)[:, 0]
    back = coefficient @ mlp.out.weight  # [n, neuron]
    act, up = gate.sigmoid(), getattr(mlp, "in").weight
    into = back * value * act / 2 @ mlp.gate.weight + back * gate * act / 2 @ up
    at = middle[:, -1].square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    whole = coefficient + into * at * model.bridge.blocks[last].ln2.weight
    write = torch.einsum(
        "nhd,hde->nhe", pairs.difference.z[last][:, -1], model.bridge.blocks[last].attn.W_O
    )
    by_hand = torch.einsum("nhe,ne->hn", write, whole).mean(1).detach()
    np.testing.assert_allclose(found[-5:-1], by_hand, rtol=5e-3, atol=1e-5)


def test_rules_refuse_capped_logits(asked, hooks_left):
    model, clean, corrupted = asked["gemma2"]
    before = hooks_left(model)
    with pytest.raises(CannotDo, match="caps its logits"):
        scores(model, clean, corrupted, method="RelP")
    assert hooks_left(model) == before


def test_searches_score_by_the_order_of_removal(asked, means):
    model, clean, corrupted = asked["gpt2"]
    # Answers that the whole model says and the empty one does not: some part is needed.
    everything = components(model)
    whole, empty = (plain_logits(model, clean, c, means["gpt2"]) for c in ([], everything))
    answers = (whole - empty).argmax(-1)
    below = whole < whole.gather(-1, answers[:, None])
    lasts = empty.masked_fill(~below, -1e9).argmax(-1)
    clean = dataclasses.replace(clean, answer_ids=answers, last_ids=lasts)
    found = scores(model, clean, corrupted, method="published sweep", means=means["gpt2"])
    circuit = search.sweep(Evaluator(model, clean, means["gpt2"]))
    kept = [c in circuit.components for c in components(model)]
    assert sorted(found.values) == list(range(1, 16)) and 0 < sum(kept) < 15
    assert found.values[kept].min() > np.delete(found.values, np.flatnonzero(kept)).max()
    first = next(s["component"] for s in circuit.steps if s["removed"])
    assert str(components(model)[int(found.values.argmin())]) == first
    other = scores(model, clean, corrupted, method="ranked search", means=means["gpt2"])
    assert sorted(other.values) == list(range(1, 16))


def test_order_of_removal_by_hand():
    model = type("Shape", (), {"n_layers": 1, "n_heads": 4})
    trials = [
        {"component": "0.1", "score": 0.9, "removed": True},
        {"component": "0.0 mlp0", "score": 0.2, "removed": False},
        {"component": "mlp0", "score": 0.1, "removed": False},
        {"component": "0.3", "score": 0.95, "removed": True},
        {"component": "0.0", "score": 0.5, "removed": False},
    ]
    # gone: 0.1, 0.3; kept: 0.2 never tried alone, 0.0 leaves .5, mlp0 leaves .1
    assert order_of_removal(components(model), trials).tolist() == [4, 1, 3, 2, 5]


def test_the_ensemble_averages_what_is_known(asked):
    model, clean, corrupted = asked["gpt2"]
    known = {
        name: scores(model, clean, corrupted, method=name, n_steps=2) for name in registry.MEMBERS
    }
    found = scores(model, clean, corrupted, method="ensemble", n_steps=2, known=known)
    parts = [s.values / np.sqrt((s.values**2).mean()) for s in known.values()]
    np.testing.assert_allclose(found.values, np.mean(parts, 0))
    assert found.seconds == pytest.approx(sum(s.seconds for s in known.values()))
    alone = scores(model, clean, corrupted, method="ensemble", n_steps=2)
    np.testing.assert_allclose(alone.values, found.values, rtol=1e-4)
    assert alone.passes == found.passes == sum(s.passes for s in known.values())


def test_another_metric_is_explained_as_well(asked, means):
    """Log probability of the answer: exact by plain passes, and a gradient that agrees with a
    small step."""
    model, clean, corrupted = asked["llama"]
    given = model, clean, corrupted, answer_log_prob
    found = scores(*given, method="exact ablation", means=means["llama"]).values
    rows, c = range(3), components(model)[3]
    whole, left = (
        plain_logits(model, clean, names, means["llama"]).log_softmax(-1)[rows, clean.answer_ids]
        for names in ([], [c])
    )
    assert found[3] == pytest.approx((whole - left).mean().item(), abs=1e-5)
    slope = scores(*given, method="attribution patching").values
    pairs = Pairs.recorded(*given)
    own, step = pairs.clean.run.activations, 1e-2
    sides = []
    for way in (-step, step):
        near = Activations(own.z + way * pairs.difference.z, own.mlp + way * pairs.difference.mlp)
        sides.append(plain_logits(model, clean, [c], near).log_softmax(-1)[rows, clean.answer_ids])
    expected = (sides[1] - sides[0]).mean().item() / (2 * step)
    assert slope[3] == pytest.approx(expected, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("method", registry.ALONE)
def test_scores_in_batches_are_those_of_all_prompts_at_once(asked, method, monkeypatch):
    """A gradient's graph is of one batch, so that memory does not grow with the prompts."""
    model, clean, corrupted = asked["gpt2"]
    sizes, own = [], METHODS[method].ask

    def ask(question):
        sizes.append(len(question.clean))
        return own(question)

    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], ask=ask))
    given = model, clean, corrupted
    whole = registry.by_prompt(*given, method=method, n_steps=2)
    monkeypatch.setitem(registry.GRADIENT_BATCH, "cpu", 2)
    found = registry.by_prompt(*given, method=method, n_steps=2)
    assert sizes == [3, 2, 1] and found.shape == whole.shape
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="3 prompts have 2 partners"):
        registry.by_prompt(model, clean, corrupted[[0, 1]], method=method)


def test_activation_patching_explains_the_clean_run_by_every_metric(asked):
    """Not the corrupted one, whose own divergence from itself is 0."""
    model, clean, corrupted = asked["gpt2"]
    whole = plain_logits(model, clean, [], None).log_softmax(-1)
    own = record(model, clean).activations

    def divergence(names):
        after = plain_logits(model, corrupted, names, own).log_softmax(-1)
        return (whole.exp() * (whole - after)).sum(-1).mean().item()

    expected = [divergence([]) - divergence([c]) for c in components(model)]
    found = scores(model, clean, corrupted, minus_kl, method="activation patching").values
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_registry_says_what_each_method_is_and_where_it_is_from():
    assert len(METHODS) == 11
    for method in METHODS.values():
        assert method.summary.endswith(".") and method.source
    assert logit_difference.__doc__


def test_refusals(asked, sets):
    model, clean, corrupted = asked["gpt2"]
    with pytest.raises(UserError, match="did you mean 'attribution patching'"):
        scores(model, clean, corrupted, method="atribution patching")
    with pytest.raises(UserError, match="1 or 3 fit"):
        scores(model, clean, sets.corrupted[range(2)])


def test_plain_hooks_are_what_the_oracle_says(asked):
    """The oracle of this file itself: a hook with the run's own values changes nothing."""
    model, clean, _ = asked["llama"]
    own = Evaluator(model, clean, Pairs.recorded(*asked["llama"]).corrupted.activations)
    hooks = plain_hooks(components(model), own.run.activations)
    again, _ = plain_run(model, clean, hooks=hooks)
    torch.testing.assert_close(again, own.intact.logit_diff, atol=1e-4, rtol=1e-4)
