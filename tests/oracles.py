"""Slow, obvious computations that the engine is held to, and small models to hold it on."""

import dataclasses

import torch

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import components
from seqcirc_utils.prompts import scores as scores_module


def plain_hooks(names, replacement, positions=None):
    """A hook per component, for whole passes: replaced at all positions, or at ``[n, pos]``."""

    def where(new, old):
        if positions is None:
            return new.expand_as(old)
        return torch.where(positions.reshape(*positions.shape, *[1] * (old.ndim - 2)), new, old)

    hooks = []
    for name in names:
        if name.head is None:

            def swap(value, hook, layer=name.layer):
                return where(replacement.mlp[layer], value)

            hooks.append((f"blocks.{name.layer}.hook_mlp_out", swap))
        else:

            def swap(value, hook, layer=name.layer, head=name.head):
                value = value.clone()
                value[:, :, head] = where(replacement.z[layer][:, :, head], value[:, :, head])
                return value

            hooks.append((f"blocks.{name.layer}.attn.hook_z", swap))
    return hooks


def plain_edit(edit):
    """A hook that multiplies what a component writes."""
    layer, head = edit.component

    def scale(value, hook):
        if head is None:
            return value * edit.factor
        value = value.clone()
        value[:, :, head] *= edit.factor
        return value

    return f"blocks.{layer}.{'hook_mlp_out' if head is None else 'attn.hook_z'}", scale


def plain_logits(model, prompts, *arguments):
    """The slow, obvious way: one whole pass with a hook per component; logits ``[n, vocab]``."""
    hooks = plain_hooks(*arguments)
    with torch.no_grad():
        return model.bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[:, -1]


def plain_loss(model, tokens, hooks=()):
    """Mean next-token loss of each row under any hooks ``[n]``, in nats per token."""
    with torch.no_grad():
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=list(hooks))[:, :-1]
    return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].mean(1)


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
