"""Next-token loss on plain text with components ablated."""

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from tqdm import tqdm

from seqcirc_utils.ablation.replay import Activations, record
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import unknown
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.plain_text import text_chunks


@torch.no_grad()
def next_token_loss(
    model: Model, tokens: torch.Tensor, hooks: Sequence[tuple[str, Any]] = (), batch: int = 32
) -> torch.Tensor:
    """Mean next-token loss of each row, in nats per token, under any TransformerLens hooks.

    Args:
        model: The model.
        tokens: Token ids ``[n, pos]``.
        hooks: As ``run_with_hooks`` takes them; they see rows in batches.
        batch: Rows of one pass.

    Returns:
        Losses ``[n]``.
    """
    parts = []
    for rows in tokens.to(model.device).split(batch):
        logits = model.bridge.run_with_hooks(rows, fwd_hooks=list(hooks))[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")
        parts.append(loss.mean(1).cpu())
    return torch.cat(parts)


def text_loss(
    model: Model,
    ablated: Sequence[Iterable[Component]],
    *,
    length: int = 24,
    replacement: Activations | None = None,
    progress: str | None = None,
) -> torch.Tensor:
    """Next-token loss on the plain text with each set of components mean-ablated.

    Args:
        model: The model.
        ablated: Sets of components; each is replaced together, an empty one is the whole model.
        length: Tokens of a piece of text.
        replacement: What replaced components write; the mean over the other pieces of the text,
            position by position, when ``None``.
        progress: Label of a progress bar.

    Returns:
        Losses in nats per token ``[set, chunk]``.

    Raises:
        UserError: as :func:`text_chunks`, or for an unknown component.
    """
    tokens, others = text_chunks(model, length)
    if replacement is None:
        only_tokens = SimpleNamespace(tokens=others)  # all that recording reads of prompts
        replacement = record(model, only_tokens).activations.mean()
    found = []
    for names in tqdm(list(ablated), desc=progress, unit="set", disable=progress is None):
        found.append(next_token_loss(model, tokens, ablation_hooks(model, names, replacement)))
    return torch.stack(found)


def ablation_hooks(
    model: Model, names: Iterable[Component], replacement: Activations
) -> list[tuple[str, Callable]]:
    """Hooks that replace components at all positions by a mean (``n = 1`` in ``replacement``).

    Raises:
        UserError: for an unknown component.
    """
    known = set(components(model))
    heads: dict[int, list[int]] = {}
    hooks: list[tuple[str, Callable]] = []
    for component in names:
        layer, head = component
        if component not in known:
            raise unknown("component", str(component), map(str, known))
        if head is None:
            new = replacement.mlp[layer]
            name = f"blocks.{layer}.hook_mlp_out"
            hooks.append((name, lambda v, hook, r=new: r.to(v).expand_as(v)))
        else:
            heads.setdefault(layer, []).append(head)

    def swap(value: torch.Tensor, hook: Any, which: list[int], new: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, :, which] = new[:, :, which].to(value)
        return value

    for layer, which in heads.items():
        new = replacement.z[layer]
        name = f"blocks.{layer}.attn.hook_z"
        hooks.append((name, lambda v, hook, w=which, r=new: swap(v, hook, w, r)))
    return hooks
