"""What a last stream says of tokens that are already written (teacher forcing)."""

import torch

from seqcirc_utils.models.capabilities import logits, require
from seqcirc_utils.models.loading import Model
from seqcirc_utils.statistics import finite

AT_ONCE = 2**23
"""Logits held at once, 32 MB of them: a vocabulary may be large."""


@torch.no_grad()
def continuations(
    model: Model, stream: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's top token at each position, and the log probability of the true ones.

    Args:
        model: The model.
        stream: Last streams ``[candidate, n, p + 1, d_model]``.
        truth: The tokens that follow the first ``p`` of these positions ``[n, p]``.

    Returns:
        Top tokens ``[candidate, n, p + 1]``, and log probabilities in nats ``[candidate, n, p]``.

    Raises:
        UserError: for logits that are not finite, or a model whose logits are not made by final
            norm and unembedding.
    """
    require(model, "readout", "what it says of a token is not known here.")
    shape = stream.shape[:3]
    rows = max(1, AT_ONCE // (shape[2] * model.facts.d_vocab))
    truth = truth.to(stream.device).expand(shape[0], *truth.shape).flatten(0, 1)
    tops, log_probs = [], []
    for part, true in zip(stream.flatten(0, 1).split(rows), truth.split(rows), strict=True):
        # [rows, p + 1, vocab]; the library's logit_readout would make all log probabilities too.
        read = finite(logits(model, model.bridge.ln_final(part), slice(None)).float())
        tops.append(read.argmax(-1).cpu())
        own = read[:, :-1].gather(-1, true[..., None])[..., 0]  # [rows, p]
        log_probs.append((own - read[:, :-1].logsumexp(-1)).cpu())
    return torch.cat(tops).reshape(shape), torch.cat(log_probs).reshape(*shape[:2], -1)
