"""Plain text without any sequence, in pieces."""

from pathlib import Path

import torch

from seqcirc_utils.errors import UserError
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.controls import misfit
from seqcirc_utils.prompts.vocabulary import encode

_TEXT = Path(__file__).parent / "plain_text.txt"


def text_chunks(model: Model, length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain text in pieces of ``length`` tokens, each behind the token put in front.

    The text is shipped with the package: ten paragraphs written for it, with no digit,
    number word or month in it.

    Returns:
        Token ids ``[chunk, pos]`` of the pieces to score, and of those behind the means (every
        other piece each).

    Raises:
        UserError: for a length that leaves fewer than two pieces of each, or a tokenizer that
            cannot write the text.
    """
    text = _TEXT.read_text(encoding="utf-8")
    ids = encode(model.tokenizer, text)
    unk = model.tokenizer.unk_token_id
    if unk is not None and unk in ids:
        raise misfit(model, "the plain text", f"it cannot write {ids.count(unk)} of its words")
    if length < 2 or len(ids) < 4 * length:
        raise UserError(
            f"length must be from 2 to {len(ids) // 4} tokens (the text makes four pieces), got "
            f"{length}."
        )
    whole = range(0, len(ids) - length + 1, length)
    pieces = torch.tensor([model.in_front + ids[i : i + length] for i in whole])
    return pieces[::2], pieces[1::2]
