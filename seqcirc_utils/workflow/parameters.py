"""What a stage's notebook lets one set, checked strictly before any compute.

A notebook's cell tagged ``parameters`` declares what may be set. Papermill itself only warns of
unknown names and checks no types.
"""

import ast
import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqcirc_utils import store
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models import zoo
from seqcirc_utils.prompts.sequences import TASKS, TEMPLATES
from seqcirc_utils.workflow.stages import notebook

_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
_QUOTE = "put it in quotes (papermill: -r, not -p), for YAML reads numbers, yes and no otherwise"
_CHOICES = {"device": zoo.DEVICES, "dtype": ("float32", "bfloat16", "float16")}
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
        if full[name] != known[name].default or name == "model":
            try:
                _check_where_used(name, full[name])
            except UserError as error:
                raise UserError(f"{stage}: {name}: {error}") from None
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
    if name == "prepend":
        return "allowed are auto, none, bos, or a token of the model's vocabulary"
    return ""


def _check_value(stage: str, name: str, value: Any) -> None:
    least = _least(name)
    wrong = (
        (least is not None and not least <= value < 2**63)
        or (name.startswith("share_") and not 0 < value < 1)
        or (name == "threshold" and not 0 < value <= 1)
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
    if name in ("task", "tasks") or name.endswith("templates"):
        allowed = TEMPLATES if name.endswith("templates") else TASKS
        for item in [value] if isinstance(value, str) else value:
            if item not in allowed:
                raise unknown(f"{name.removesuffix('s')} of {stage}", item, allowed)
    if name in _CHOICES and value not in _CHOICES[name]:
        raise unknown(f"{name} of {stage}", value, _CHOICES[name])
    if name == "results" and not value.strip():
        raise UserError(f"{stage}: results is empty: give a directory, as in 'results/default'.")


def _check_where_used(name: str, value: Any) -> None:
    """Refuse what the part that uses a parameter refuses.

    That part may be slow to import, so it is asked only about what is not the default.
    """
    if name == "model":
        zoo.resolve(value)
    elif name == "compare":
        for item in value:
            zoo.resolve(item)
    elif name == "probes" and value != ["all"]:
        from seqcirc_utils.prompts.probes import probes

        probes(value)
    elif name == "lengths":
        from seqcirc_utils.analyses.prediction import check_pool

        check_pool([], value)
    elif name == "factors":
        from seqcirc_utils.analyses.editing import check_factors

        check_factors(value)
    elif name == "ranking":
        from seqcirc_utils.methods.registry import ALONE

        _among(name, [value], ALONE)
    elif name == "compared":
        from seqcirc_utils.ablation.answers import KINDS

        _among("ablation", value, KINDS)


def _among(what: str, values: Iterable[str], allowed: Iterable[str]) -> None:
    for value in values:
        if value not in allowed:
            raise unknown(what, value, allowed)
