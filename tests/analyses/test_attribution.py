"""Attributions add up, the lens ends in the model, gradients match autograd."""

import warnings

import pytest
import torch
from transformer_lens.tools.analysis import logit_lens

from seqcirc_utils.analyses import attribution
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import scores
from seqcirc_utils.prompts import vocabulary as vocabulary_module


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_direct_attribution_adds_up(tiny_directories, sets, architecture):
    # A model of its own: processing changes the weights for good.
    model = loading.load(str(tiny_directories[architecture]), "cpu")
    before = scores.score(model, sets.evaluation).logit_diff
    names, parts = attribution.direct_attribution(attribution.processed(model), sets.evaluation)
    assert names == ["embed", *map(str, components(model)), "bias"]
    assert (parts.sum(0) - before).abs().max() < 1e-3 * before.abs().max()
    assert parts[1:-1].abs().max() > 1e-3


def test_the_lens_ends_in_the_model(gpt2, sets, tokenizer):
    vocabulary = vocabulary_module.vocabulary("months", tokenizer)
    positions, lens = attribution.member_lens(gpt2, sets.evaluation, vocabulary)
    assert positions[-1] == sets.evaluation.tokens.shape[1] - 1
    assert lens.shape == (4, len(sets.evaluation), len(positions), 12)
    probabilities = gpt2.bridge(sets.evaluation.tokens).softmax(-1)[:, positions]
    expected = probabilities[..., list(vocabulary.ids)].detach()
    torch.testing.assert_close(lens[-1], expected, atol=1e-5, rtol=1e-4)
    asked = {"positions": positions, "vocab": list(vocabulary.ids), "return_type": "probs"}
    theirs = logit_lens(gpt2.bridge, sets.evaluation.tokens, **asked).values
    torch.testing.assert_close(lens, theirs, atol=1e-6, rtol=1e-4)


def test_position_attribution_is_gradient_times_difference(gpt2, sets):
    pair = sets.evaluation[[0]], sets.corrupted[[0]]
    filters = list(warnings.filters)
    found = attribution.position_attribution(gpt2, *pair)
    assert warnings.filters == filters  # it silences its own warning only
    kept = {}
    name = "blocks.1.hook_mlp_out"

    def keep(value, hook):
        kept["value"] = value
        if not value.requires_grad:
            value = value.detach().requires_grad_(True)
        value.retain_grad()
        kept["value"] = value
        return value

    with torch.no_grad():
        gpt2.bridge.run_with_hooks(
            pair[0].tokens, fwd_hooks=[(name, lambda v, hook: kept.update(clean=v.clone()))]
        )
    logits = gpt2.bridge.run_with_hooks(pair[1].tokens, fwd_hooks=[(name, keep)])[0, -1]
    (logits[pair[0].answer_ids[0]] - logits[pair[0].last_ids[0]]).backward()
    difference = (kept["clean"] - kept["value"]).detach()
    expected = (difference * kept["value"].grad).sum(-1)[0]
    torch.testing.assert_close(found[Component(1, None)], expected, atol=1e-5, rtol=1e-3)
    first = int(pair[0].member_positions[0, 0])
    for values in found.values():
        assert values[:first].abs().max() < 1e-6  # the prompts are the same up to there
    assert expected.abs().max() > 1e-5


def test_position_attribution_is_the_mean_over_pairs(gpt2, sets):
    pairs = sets.evaluation[[0, 1, 2]], sets.corrupted[[0, 1, 2]]
    found = attribution.position_attribution(gpt2, *pairs)
    alone = [attribution.position_attribution(gpt2, *(p[[i]] for p in pairs)) for i in range(3)]
    for component, estimate in found.items():
        expected = torch.stack([one[component] for one in alone]).mean(0)
        torch.testing.assert_close(estimate, expected, atol=1e-5, rtol=1e-4)
    assert (alone[0][Component(1, None)] - alone[1][Component(1, None)]).abs().max() > 1e-4


def test_what_no_component_writes_is_refused_with_what_else_there_is(tiny_directories, sets):
    model = attribution.processed(loading.load(str(tiny_directories["gpt2"]), "cpu"))
    extra = torch.linspace(-3, 3, model.facts.d_model)
    block = model.bridge.blocks[1]

    def add(module, args, out):
        return (out[0] + extra, *out[1:]) if isinstance(out, tuple) else out + extra

    handle = block.register_forward_hook(add)
    try:
        with pytest.raises(UserError, match=r"no component writes, so direct .* Ablation does\.$"):
            attribution.direct_attribution(model, sets.evaluation)
    finally:
        handle.remove()
