"""Slow, obvious computations that the engine is held to, and small models to hold it on."""

import dataclasses

import torch

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import components
from seqcirc_utils.prompts import scores as scores_module


def plain_logits(model, prompts, names, replacement, positions=None):
    """The slow, obvious way: one whole pass with a hook per component; logits ``[n, vocab]``."""
    n, pos = prompts.tokens.shape
    where = torch.ones(n, pos, dtype=torch.bool) if positions is None else positions
    hooks = []
    for name in names:
        if name.head is None:

            def swap(value, hook, layer=name.layer):
                return torch.where(where[..., None], replacement.mlp[layer], value)

            hooks.append((f"blocks.{name.layer}.hook_mlp_out", swap))
        else:

            def swap(value, hook, layer=name.layer, head=name.head):
                value = value.clone()
                new = replacement.z[layer][:, :, head]
                value[:, :, head] = torch.where(where[..., None], new, value[:, :, head])
                return value

            hooks.append((f"blocks.{name.layer}.attn.hook_z", swap))
    with torch.no_grad():
        return model.bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[:, -1]


def plainly(model, prompts, *arguments):
    """Logit differences ``[n]``, the slow way."""
    return scores_module.Scores.read(plain_logits(model, prompts, *arguments), prompts).logit_diff


def evaluator_of(model, prompts, replacement):
    """An evaluator on which a random model has something to lose.

    The answer is the token that the components raise most; the last member is what the model says
    with everything replaced, among the tokens below the answer.
    """
    whole, empty = (
        plain_logits(model, prompts, names, replacement) for names in ([], components(model))
    )
    answers = (whole - empty).argmax(-1)
    below = whole < whole.gather(-1, answers[:, None])
    lasts = empty.masked_fill(~below, -torch.inf).argmax(-1)
    chosen = dataclasses.replace(prompts, answer_ids=answers, last_ids=lasts)
    return Evaluator(model, chosen, replacement)
