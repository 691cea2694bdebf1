"""The CPU or a GPU: which is meant, and whether it computes what the CPU does."""

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from seqcirc_utils.errors import UserError
from seqcirc_utils.models.weights import _alike, _first_line, end_logits
from seqcirc_utils.models.zoo import GPUS


def _not_used(device: str, why: Iterable[str]) -> None:
    """Refuse the GPU that was asked for; say in one line that ``auto`` does without."""
    why = "; ".join(why)
    if device != "auto":
        raise UserError(f"device {device!r} was asked for, but {why}: use 'cpu' or 'auto'.")
    print(f"The GPU is not used, the CPU is: {why}.", file=sys.stderr)


def _working(device: str) -> str:
    """The kind of device that is meant, after a tiny computation on it."""
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
                why = f"{kind} cannot compute: {_first_line(error)}"
        if said and not there:
            why += f" ({_first_line(said[-1].message)})"
        if there or said or device != "auto":
            faults.append(why)
    if faults:
        _not_used(device, faults)
    return "cpu"


def _moved(model: Any, kind: str) -> str:
    """Move a model to a GPU; returns why it must not stay there, or nothing."""
    expected = end_logits(model)
    try:
        found = end_logits(model.to(kind))
    except RuntimeError as error:
        return f"{kind} cannot run the model: {_first_line(error)}"
    return "" if _alike(found, expected, model.dtype) else f"{kind} computes other logits"
