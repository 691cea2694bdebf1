"""Where the answer is written: logit lens, direct logit attribution, attribution patching.

Thin wrappers over ``transformer_lens.tools.analysis`` that run whole prompt sets and return tables.
"""

import warnings
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformer_lens.tools.analysis import (
    attribution_patch,
    direct_logit_attribution,
)

from seqcirc_utils.ablation.replay import hook_name, run_blocks
from seqcirc_utils.analyses.heads import head_writes
from seqcirc_utils.analyses.lens import readout
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.capabilities import require
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.vocabulary import Vocabulary


@torch.no_grad()
def member_lens(
    model: Model, prompts: Prompts, vocabulary: Vocabulary
) -> tuple[list[int], torch.Tensor]:
    """Logit lens on the task's members, at every layer, where members stand and at the end.

    Returns:
        The token positions read, and probabilities ``[layer + 1, n, position, member]`` over the
        whole vocabulary, entry 0 being the embedding; members the tokenizer splits have
        probability 0.

    Raises:
        UserError: for a model whose logits are not made by final norm and unembedding.
    """
    require(model, "readout", "a logit lens does not apply.")
    end = prompts.tokens.shape[1] - 1
    positions = sorted({*prompts.member_positions.flatten().tolist(), end})
    known = [i for i, token in enumerate(vocabulary.ids) if token is not None]
    ids = torch.tensor([token for token in vocabulary.ids if token is not None])
    names = [hook_name(layer, "in") for layer in range(model.n_layers)]
    names.append(hook_name(model.n_layers - 1, "out"))
    parts = []
    kept: dict[str, torch.Tensor] = {}

    def keep(value: torch.Tensor, hook: Any, name: str) -> None:
        kept[name] = value[:, positions]

    hooks = [(name, partial(keep, name=name)) for name in names]
    for rows in tqdm(prompts.tokens.split(8), desc="Logit lens", unit="batch"):
        run_blocks(model, rows, hooks)
        streams = (kept[name] for name in names)  # [n, position, d_model] each
        read = [readout(model, stream, ids.to(model.device))[0] for stream in streams]
        parts.append(torch.stack(read))
    found = torch.cat(parts, 1)
    whole = torch.zeros(*found.shape[:-1], len(vocabulary.members))
    whole[..., known] = found
    return positions, whole


def processed(model: Model) -> Model:
    """Fold and centre the model's weights in place, as direct logit attribution asks.

    The function computed stays the same up to a constant on all logits. Use the model for nothing
    else afterwards.
    """
    if not getattr(model.bridge, "compatibility_mode", False):
        # Each step holds all weights once more: what changes no logit difference is left out. A
        # norm's bias becomes one of the values when it is folded.
        biases = model.bridge.cfg.normalization_type.startswith("LN")
        biases = biases or any(block.attn.b_V is not None for block in model.bridge.blocks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.bridge.enable_compatibility_mode(center_unembed=False, fold_value_biases=biases)
        model.bridge.eval()
    return model


@torch.no_grad()
def direct_attribution(
    model: Model, prompts: Prompts, batch: int = 4
) -> tuple[list[str], torch.Tensor]:
    """Direct contributions to the logit difference at the end of each prompt.

    Args:
        model: A model that went through :func:`processed`.
        prompts: Clean prompts.
        batch: Prompts of one pass, all of whose activations are kept.

    Returns:
        Names (``embed``, heads as ``L.H``, MLPs as ``mlpL``, ``bias`` for what no component
        writes, such as attention output biases) and contributions ``[name, n]`` in logits. Their
        sum over names is the model's logit difference.

    Raises:
        UserError: for a model whose logits are no sum of what its components write.
    """
    so = "direct logit attribution does not apply. Ablation does."
    scale = require(model, "readout linear shares", so).logits
    sides = torch.ones(model.facts.d_model, device=model.device, dtype=model.bridge.W_U.dtype)
    sides[::2] = -1  # mean 0, size 1: a norm without weights gives it back
    if not torch.allclose(model.bridge.ln_final(sides[None, None]), sides, 1e-3, 1e-3):
        raise UserError(
            f"{model.facts.title} has a final norm with weights that cannot be folded, so {so}"
        )
    names = ["embed", *map(str, components(model)), "bias"]
    parts = []
    for rows in torch.arange(len(prompts)).split(batch):
        part = prompts[rows.tolist()]
        tokens = part.tokens.to(model.device)
        answers, lasts = part.answer_ids.to(model.device), part.last_ids.to(model.device)
        logits, cache = model.bridge.run_with_cache(tokens)
        by_layer = direct_logit_attribution(
            model.bridge, tokens, answers, lasts, unit="component", cache=cache
        )
        z = [cache[f"blocks.{i}.attn.hook_z"][:, -1] for i in range(model.n_layers)]
        writes = torch.cat([head_writes(model, i, own) for i, own in enumerate(z)], 1)
        by_head = cache.logit_attrs(
            writes.transpose(0, 1), tokens=answers, incorrect_tokens=lasts, pos_slice=-1
        )
        heads = iter(by_head.cpu())
        layer = dict(zip(by_layer.labels, by_layer.attribution.cpu(), strict=True))
        zero = torch.zeros(len(part))
        found = [sum((value for label, value in layer.items() if "embed" in label), zero)]
        for c in components(model):
            found.append(layer[f"{c.layer}_mlp_out"] if c.head is None else next(heads))
        rest = sum(layer.values(), zero) - sum(found, zero)
        bias = model.bridge.b_U
        rest = rest + (bias[answers] - bias[lasts]).cpu()
        parts.append(torch.stack([*found, rest]) * scale)
        rows = torch.arange(len(part))
        expected = (logits[rows, -1, answers] - logits[rows, -1, lasts]).cpu()
        close = 10 * torch.finfo(logits.dtype).eps ** 0.5
        if not torch.allclose(parts[-1].sum(0), expected, close, close * expected.abs().max()):
            raise UserError(
                f"{model.facts.title} adds something to its logits that no component writes, so "
                + so
            )
    return names, torch.cat(parts, 1)


def position_attribution(
    model: Model, prompts: Prompts, corrupted: Prompts, progress: str = "Attribution patching"
) -> dict[Component, torch.Tensor]:
    """Attribution patching of every component at every position (TransformerLens' node scores).

    First-order estimate of how much the logit difference of the corrupted run rises when one
    component's value at one position is replaced by the clean one; the mean over prompt pairs.

    Returns:
        Component to estimate ``[pos]``, in logits.
    """
    n, pos = prompts.tokens.shape
    totals = {component: torch.zeros(pos) for component in components(model)}
    # Weights need no gradient, but the gradient has to start somewhere: at the embedding's output.
    start = model.bridge.embed.hook_out
    handle = start.register_forward_hook(
        lambda module, args, out: out.detach().requires_grad_(torch.is_grad_enabled())
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for i in tqdm(range(n), desc=progress, unit="pair"):
                answer, last = int(prompts.answer_ids[i]), int(prompts.last_ids[i])
                result = attribution_patch(
                    model.bridge,
                    prompts.tokens[i : i + 1].to(model.device),
                    corrupted.tokens[i : i + 1].to(model.device),
                    lambda logits, a=answer, b=last: logits[0, -1, a] - logits[0, -1, b],
                )
                for node, value in result.node_scores.items():
                    if node.layer is not None and node.kind in ("attn_head_out", "mlp_out"):
                        totals[Component(node.layer, node.head)][node.position] += value / n
    finally:
        handle.remove()
    return totals
