"""Reading weights, and refusing those that are not exactly a model's own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError

from seqcirc_utils.errors import UserError


def first_line(error: object) -> str:
    """The first line of what an error or a warning says; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what libraries raise over a model's files into one line.

    Raises:
        UserError: for what cannot be read.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{name} is not a model we can read: {first_line(error)}") from error


def causal_model(name: str, **options: Any) -> Any:
    """Read a language model of transformers, or refuse weights that are not exactly its own.

    Left to itself, transformers fills in random values for what is missing, and the seed makes the
    nonsense look reproducible.

    Raises:
        UserError: for such weights, and for a model that does not continue texts.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its report takes a screen; ours is one line
    try:
        with reading(name):
            model, report = AutoModelForCausalLM.from_pretrained(
                **options, output_loading_info=True, ignore_mismatched_sizes=True
            )
        model.eval()
        _check_weights(name, model, report)
        _check_causal(name, model)
    finally:
        logging.set_verbosity(before)
    return model


def _check_weights(name: str, model: Any, report: dict[str, Any]) -> None:
    buffers = [f".{buffer}" for buffer, _ in model.named_buffers()]

    def is_weight(key: str) -> bool:  # old files carry masks and the like, which code makes today
        return not (key.endswith("masked_bias") or any(b.endswith(f".{key}") for b in buffers))

    wrong = {
        "missing": report["missing_keys"],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
        "not of this model": [key for key in report["unexpected_keys"] if is_weight(key)],
    }
    if said := [f"{what} {_some(sorted(keys))}" for what, keys in wrong.items() if keys]:
        raise UserError(
            f"the weights of {name} are not those of the {type(model).__name__} that its "
            f"config.json tells of: {'; '.join(said)}. Save the language model itself, with its "
            "head and without a wrapper, by save_pretrained(…)."
        )
    if broken := [key for key, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(
            f"the weights of {name} hold NaN or infinity: {_some(broken)}. Get a sound copy, or "
            "use dtype float32 if another made them infinite."
        )


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} ({shown})"


@torch.no_grad()
def end_logits(model: Any, last: int = 4) -> torch.Tensor:
    """What a model says of four tokens ``[pos, vocab]``."""
    tokens = torch.tensor([[1, 2, 3, last]], device=model.device)
    return model(tokens).logits[0].float().cpu()


KNOWN_TEXT = (
    "The sun rises in the east and sets in the west. The capital of France is Paris, and the "
    "capital of Italy is Rome. Water boils at one hundred degrees. One two three four five six "
    "seven eight nine ten."
)


@torch.no_grad()
def text_loss(model: Any, tokenizer: Any) -> float:
    """Mean loss of a model of transformers on :data:`KNOWN_TEXT` behind its BOS, nats per token."""
    ids = tokenizer(KNOWN_TEXT, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    tokens = torch.tensor([ids], device=model.device)
    return model(tokens, labels=tokens).loss.item()


def alike(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits of one shape, computed in ``dtype``, differ by no more than rounding."""
    largest = b.nan_to_num(0, 0, 0).abs().max().item()
    return torch.allclose(a, b, 0, torch.finfo(dtype).eps ** 0.5 * largest, equal_nan=True)


def _check_causal(name: str, model: Any) -> None:
    here, there = (end_logits(model, last)[:-1] for last in (4, 0))
    if not alike(here, there, model.dtype):
        raise UserError(
            f"{name} is no model that continues a text: what its {type(model).__name__} says of a "
            "token depends on later tokens (an encoder?). Choose a causal language model."
        )
