"""The CPU or a GPU: which is meant, and whether it computes what the CPU does."""

import sys
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

from seqcirc_utils.errors import UserError
from seqcirc_utils.models.weights import alike, end_logits, first_line
from seqcirc_utils.models.zoo import GPUS


def not_used(device: str, why: Iterable[str]) -> None:
    """Say in one line that ``auto`` does without the GPU.

    Raises:
        UserError: for a GPU that was asked for by name.
    """
    why = "; ".join(why)
    if device != "auto":
        raise UserError(f"device {device!r} was asked for, but {why}: use 'cpu' or 'auto'.")
    print(f"The GPU is not used, the CPU is: {why}.", file=sys.stderr)


def working(device: str) -> str:
    """The kind of device that is meant, after a tiny computation on it.

    Raises:
        UserError: for a named GPU that does not work.
    """
    faults = []
    for kind in GPUS if device == "auto" else (device,):
        if kind == "cpu":
            break
        there, why = False, f"torch sees no GPU of kind {kind}"
        # Torch tells of a broken driver and of a GPU that is too old by warnings of many lines.
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                if there := getattr(torch, kind).is_available():
                    ones = torch.ones(32, 32, device=kind)
                    if (ones @ ones).sum().item() == 32**3:
                        return kind
                    why = f"{kind} computes a wrong product"
            except (RuntimeError, AssertionError) as error:
                why = f"{kind} cannot compute: {first_line(error)}"
        if said and not there:
            why += f" ({first_line(said[-1].message)})"
        if there or said or device != "auto":
            faults.append(why)
    if faults:
        not_used(device, faults)
    return "cpu"


def moved(model: Any, kind: str) -> str:
    """Move a model to a GPU; returns why it must not stay there, or nothing."""
    expected = end_logits(model)
    try:
        found = end_logits(model.to(kind))
    except RuntimeError as error:
        return f"{kind} cannot run the model: {first_line(error)}"
    return "" if alike(found, expected, model.dtype) else f"{kind} computes other logits"


@cache
def has_double(device: torch.device) -> bool:
    """Whether a device computes in double precision; Apple's do not."""
    try:
        torch.ones((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def double(values: torch.Tensor) -> torch.Tensor:
    """Values in double precision: where they are if it can be had there, else on the CPU."""
    return (values if has_double(values.device) else values.cpu()).double()
