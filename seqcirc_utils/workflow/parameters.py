"""What a stage's notebook lets one set, checked strictly before any compute.

A notebook's cell tagged ``parameters`` declares what may be set. Papermill itself only warns of
unknown names and checks no types.
"""

import ast
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqcirc_utils import choices, store
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models import zoo
from seqcirc_utils.prompts import probes
from seqcirc_utils.prompts.sequences import TASKS, TEMPLATES
from seqcirc_utils.workflow.stages import notebook

_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
_QUOTE = "put it in quotes (papermill: -r, not -p), for YAML reads numbers, yes and no otherwise"
_CHOICES = {"device": zoo.DEVICES, "dtype": ("float32", "bfloat16", "float16")}
_CHOICES |= {"ranking": choices.ALONE, "compared": choices.KINDS}
_CHOICES |= dict.fromkeys(("task", "tasks"), tuple(TASKS))
_CHOICES |= dict.fromkeys(("templates", "pool_templates", "more_templates"), tuple(TEMPLATES))
_CHOICES |= {"probes": ("all", *probes.names())}
# 0 leaves a part out. One prompt has no interval, and few repeats have no frequency.
_LEAST = dict.fromkeys(("seed", "das_epochs", "n_attention", "n_searched", "n_specific_random"), 0)
_LEAST |= dict.fromkeys(("das_rank", "layer_step", "swap_step"), 1)
_LEAST |= {"n_prompts": 2, "n_held": 2, "n_ranked": 2, "n_resampled": 20}


@dataclass(frozen=True)
class Parameter:
    """A declared parameter: its default value, its type, and a line of help."""

    name: str
    default: Any
    type: type
    help: str


def declared(stage: str) -> dict[str, Parameter]:
    """Return the parameters that a stage's notebook declares, by name.

    Raises:
        UserError: for an unknown stage, a notebook that cannot be read, or a parameters cell that
            is missing or not annotated literals.
    """
    path = notebook(stage)
    return dict(_declared(stage, path, store.stamp(path)))


@functools.lru_cache
def _declared(stage: str, path: Path, stamp: tuple) -> dict[str, Parameter]:
    from nbformat import ValidationError
    from papermill import inspect_notebook

    parameters = {}
    try:
        inspected = inspect_notebook(str(path))
    except (ValueError, ValidationError) as error:  # no notebook, or one that names no kernel
        said = str(error).splitlines()[0]
        raise UserError(f"{stage}: {path.name} cannot be read: {said}") from None
    for name, found in inspected.items():
        kind = _TYPES.get(re.sub(r"\[.*", "", found["inferred_type_name"]))
        try:
            default = ast.literal_eval(found["default"])
        except (ValueError, SyntaxError):
            kind = default = None
        if kind is None:
            raise UserError(
                f"{stage}: parameter {name} in {path.name} must be an annotated literal, as in "
                f"`{name}: int = 3  # what it is` (types: {', '.join(_TYPES)})."
            )
        parameters[name] = Parameter(name, default, kind, found["help"])
    if not parameters:
        raise UserError(f"{stage}: {path.name} has no cell tagged `parameters`.")
    return parameters


def check(stage: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Check parameters strictly and return all of the stage's, with defaults filled in.

    Raises:
        UserError: for an unknown name, a wrong type or a value that is not allowed.
    """
    known = declared(stage)
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of {stage}", name, known)
    full = {name: parameters.get(name, p.default) for name, p in known.items()}
    for name, value in full.items():
        full[name] = _typed(stage, known[name], value)
        _check_value(stage, name, full[name])
    return full


def _typed(stage: str, parameter: Parameter, value: Any) -> Any:
    kind = parameter.type
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        allowed = _allowed(parameter.name)
        if kind is str and not isinstance(value, list | dict):
            allowed = _QUOTE
        raise UserError(
            f"{stage}: {parameter.name} must be {kind.__name__}, not {type(value).__name__} "
            f"({value!r}){allowed and ': ' + allowed}."
        )
    if kind is list and parameter.default:
        wanted = type(parameter.default[0])
        if wanted is float:  # YAML reads 2 as a whole number
            value = [float(item) if type(item) is int else item for item in value]
        for item in value:
            if type(item) is not wanted:
                raise UserError(
                    f"{stage}: every item of {parameter.name} must be {wanted.__name__}, "
                    f"not {item!r}{': ' + _QUOTE if wanted is str else ''}."
                )
    return value


def _least(name: str) -> int | None:
    """The least whole number, of parameters that have one."""
    return _LEAST.get(name, 1 if name.startswith("n_") else None)


def _allowed(name: str) -> str:
    if (least := _least(name)) is not None:
        return f"allowed is a whole number of at least {least}"
    if name.startswith("share_"):
        return "allowed is a number above 0 and below 1"
    if name == "threshold":
        return "allowed is a number above 0 and at most 1"
    if name == "lengths":
        return f"allowed are whole numbers from 1 to {choices.LONGEST}"
    if name == "factors":
        return "allowed are numbers from 0 up but 1, which is no edit"
    if name == "probes":
        return "allowed are all by itself, or names"
    if name == "prepend":
        return "allowed are auto, none, bos, or a token of the model's vocabulary"
    return ""


def _check_value(stage: str, name: str, value: Any) -> None:
    least = _least(name)
    wrong = (
        (least is not None and not least <= value < 2**63)
        or (name.startswith("share_") and not 0 < value < 1)
        or (name == "threshold" and not 0 < value <= 1)
        or (name == "lengths" and not all(1 <= n <= choices.LONGEST for n in value))
        or (name == "factors" and not all(x >= 0 and x != 1 for x in value))
        or (name == "probes" and "all" in value and len(value) > 1)
        or (name == "prepend" and not value)
    )
    if wrong:
        raise UserError(f"{stage}: {name} is {value!r}: {_allowed(name)}.")
    if isinstance(value, float) and value - value != 0:
        raise UserError(f"{stage}: {name} must be a finite number, not {value}.")
    if isinstance(value, str) and not value.isprintable():
        raise UserError(f"{stage}: {name} {value!r} holds a line break or its like: rename it.")
    if isinstance(value, list):
        if not value:
            raise UserError(f"{stage}: {name} is empty: name at least one.")
        if len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
            raise UserError(f"{stage}: {name} names something twice: {value}.")
    items = value if isinstance(value, list) else [value]
    for item in items:
        if item not in _CHOICES.get(name, [item]):
            raise unknown(f"{name.removesuffix('s')} of {stage}", item, _CHOICES[name])
    if name in ("model", "compare"):
        try:
            for item in items:
                zoo.resolve(item)
        except UserError as error:
            raise UserError(f"{stage}: {error}") from None
    if name == "results" and not value.strip():
        raise UserError(f"{stage}: results is empty: give a directory, as in 'results/default'.")
