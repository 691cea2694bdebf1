"""Path patching: what one head's write does through one input of a later head."""

from collections.abc import Callable, Sequence

import torch

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Activations, Run, hook_name
from seqcirc_utils.components import SOURCES, Component
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.capabilities import require
from seqcirc_utils.prompts.scores import Scores


def _during_block(
    run: Run,
    layer: int,
    stream: torch.Tensor,
    kind: str,
    instead: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The value at one hook of a block run on ``stream``, with other hooks' values given."""
    seen: list[torch.Tensor] = []
    hooks: list[tuple[str, Callable]] = [
        (hook_name(layer, k), lambda v, hook, new=new: new) for k, new in (instead or {}).items()
    ]
    hooks.append((hook_name(layer, kind), lambda v, hook: seen.append(v)))
    run.block(layer, stream, hooks)
    return seen[0]


@torch.no_grad()
def path_effects(
    evaluator: Evaluator, sender: Component, receivers: Sequence[Component], source: str
) -> Scores:
    """Patch the direct path from a head into the ``q``, ``k`` or ``v`` of later heads.

    The sender's change of write (replacement minus own) is added to what the receiver reads for
    that one input, and to nothing else. A head's ``z`` depends on its own q, k and v only, so the
    path patch is a replacement of the receiver's ``z``; this also serves heads that share keys and
    values, each alone.

    Args:
        evaluator: Its replacement must hold one value per prompt (or a mean).
        sender: A head.
        receivers: Heads in later layers.
        source: ``q``, ``k`` or ``v``.

    Returns:
        Scores ``[receiver, n]``.

    Raises:
        UserError: for an MLP, a receiver not above the sender, or another input than q, k, v.
    """
    if source not in SOURCES:
        raise unknown("input", source, SOURCES)
    for receiver in receivers:
        if sender.head is None or receiver.head is None or receiver.layer <= sender.layer:
            raise UserError(f"no path from {sender} into the {source} of {receiver}.")
    found = require(
        evaluator.model,
        "heads",
        "one head's write cannot be moved along a path of its own: path patching does not apply. "
        "Ablation does.",
    )
    run = evaluator.run
    weights = evaluator.model.bridge.blocks[sender.layer].attn.W_O[sender.head]
    old = run.activations.z[sender.layer][:, :, sender.head]
    new = evaluator.replacement.z[sender.layer][:, :, sender.head]
    change = (new - old) @ (weights * found.attention[sender.layer])  # [n, pos, d_model]
    z = run.activations.z.clone()
    for layer in sorted({receiver.layer for receiver in receivers}):
        stream = run.residual[layer]
        read = _during_block(run, layer, stream + change, source)
        z[layer] = _during_block(run, layer, stream, "z", instead={source: read})
    patched = evaluator.with_(replacement=Activations(z, run.activations.mlp))
    return patched.replaced([[receiver] for receiver in receivers])
