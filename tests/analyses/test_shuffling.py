"""Shuffled weights change what a model says, and are put back."""

import pytest
import torch

from seqcirc_utils.analyses.shuffling import shuffled_weights


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_shuffled_weights_are_put_back_bit_for_bit(tiny, sets, kind):
    model = tiny[kind]
    before = {name: w.clone() for name, w in model.bridge.named_parameters()}
    tokens = sets.evaluation.tokens
    with torch.no_grad():
        own = model.bridge(tokens)
        with pytest.raises(KeyError), shuffled_weights(model, 0):
            changed = model.bridge(tokens)
            raise KeyError
        again = model.bridge(tokens)
    assert not torch.allclose(own, changed, atol=0.1) and torch.equal(own, again)
    assert all(torch.equal(w, before[name]) for name, w in model.bridge.named_parameters())
