"""Next-token loss on plain text with components replaced."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import torch

from seqcirc_utils.ablation.engine import Replay
from seqcirc_utils.ablation.readout import continuations
from seqcirc_utils.ablation.replay import Activations, Run, mean_activations, record
from seqcirc_utils.components import Component
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.plain_text import text_chunks


def record_text(model: Model, tokens: torch.Tensor) -> Run:
    """Run the model on text ``[n, pos]``."""
    # Tokens are all that recording reads of prompts.
    return record(model, SimpleNamespace(tokens=tokens), writes=False)


def losses(
    run: Run,
    tokens: torch.Tensor,
    ablated: Sequence[Iterable[Component]],
    replacement: Activations,
    progress: str | None = None,
) -> torch.Tensor:
    """Mean next-token loss of each row of text with each set of components replaced.

    Args:
        run: The run of the text.
        tokens: Its token ids ``[n, pos]``.
        ablated: Sets of components; each is replaced together, an empty one is the whole model.
        replacement: What replaced components write.
        progress: Label of a progress bar.

    Returns:
        Losses in nats per token ``[set, n]``.

    Raises:
        UserError: for an unknown component, or logits that are not finite.
    """
    replay = Replay(run, replacement, last=tokens.shape[1])

    def read(stream: torch.Tensor) -> tuple[torch.Tensor]:
        return (-continuations(run.model, stream, tokens[:, 1:])[1].mean(-1),)

    return replay.each(ablated, read, progress=progress)[0]


def text_loss(
    model: Model,
    ablated: Sequence[Iterable[Component]],
    *,
    length: int = 24,
    progress: str | None = None,
) -> torch.Tensor:
    """Next-token loss on the plain text with each set of components mean-ablated.

    Replaced components write the mean over the other pieces of the text, position by position.

    Args:
        model: The model.
        ablated: Sets of components; each is replaced together, an empty one is the whole model.
        length: Tokens of a piece of text.
        progress: Label of a progress bar.

    Returns:
        Losses in nats per token ``[set, chunk]``.

    Raises:
        UserError: as :func:`text_chunks` and :func:`losses`.
    """
    tokens, others = text_chunks(model, length)
    means = mean_activations(model, SimpleNamespace(tokens=others))
    return losses(record_text(model, tokens), tokens, ablated, means, progress)
