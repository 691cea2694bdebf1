"""Across models: what the results of several models have in common, where they can be compared.

Heads of two models have no common names. So the comparison is of what each model's chapters found:
how far its shared heads are beyond chance, how deep its roles lie and in which order, where the
interchange of the place in the sequence works, and what becomes of each claim. Nothing is measured
anew, and no model is run.
"""

from dataclasses import dataclass
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any, Self

import pandas as pd
from scipy.stats import kendalltau

from seqcirc_utils import store
from seqcirc_utils.analyses.roles import NONE
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.chapters.findings import Findings, table
from seqcirc_utils.chapters.interchange import Interchange
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import zoo
from seqcirc_utils.paper.evidence import OUTDATED
from seqcirc_utils.paper.verdicts import Claims

LEVEL = 0.05
"""Corrected p-values under this count as a difference."""


@dataclass(frozen=True, kw_only=True)
class AcrossModels(Findings):
    """What can be compared between models, each by its own results.

    Attributes:
        models: A row per model that was asked for: its ``name`` and ``title``, ``layers``,
            ``heads`` in a layer, whether its results are ``here``, what is ``missing`` of them and
            why, and the ``command`` that makes them.
        shared: A row per model: ``heads`` in the circuits of all its tasks, how many random sets of
            the same sizes share (``expected``, ``p``), the same of sets with as many heads in each
            layer (``layer_expected``, ``layer_p``), the ``total`` of heads, and how many ``tasks``.
        depth: A row per model, task and role that components of the circuit have: how many, and the
            depth of the ``first``, the ``median`` and the ``last``, from 0 (first layer) to 1.
        order: A row per pair of models: the roles that both have, ``tau`` (Kendall's, between the
            median depths of these roles), its two-sided exact ``p``, and the ``least`` p that so
            many roles allow. No p where even that is above .05.
        swaps: A row per model, layer and kind of swap (``another task``, ``the same task``,
            ``placebo``) of the stream before a block: its ``depth`` from 0 to 1, whether the layer
            was ``chosen``, on which ``half`` of the prompts, how many pairs of ``prompts``; the
            share ``wanted`` of answers that are the interchanged one, the mean over pairs of tasks,
            and the ``least`` and the ``most`` of these pairs.
        swapped_heads: A row per model whose circuits share heads: how many ``heads``, the share of
            interchanged answers when they are swapped between tasks (``wanted``), and as many
            ``random`` ones of like layers; in how many (``more``) of the ``pairs`` of tasks they
            move the answer further than the random ones (corrected p under .05), and whether so
            few prompts allow such a p at all (``testable``).
        claims: A row per claim: its topic, statement, and each model's verdict.
    """

    stage = "13_across_models"

    models: pd.DataFrame = table(
        "csv",
        {"name": str, "title": str, "layers": "Int64", "heads": "Int64", "here": bool}
        | {"missing": str, "command": str},
    )
    shared: pd.DataFrame = table(
        "shared.csv",
        {"model": str, "heads": int, "expected": float, "p": float}
        | {"layer_expected": float, "layer_p": float, "total": int, "tasks": int},
    )
    depth: pd.DataFrame = table(
        "depth.csv",
        {"model": str, "task": str, "role": str, "n": int}
        | dict.fromkeys(("first", "median", "last"), float),
    )
    order: pd.DataFrame = table(
        "order.csv",
        {"first": str, "second": str, "roles": str, "tau": float, "p": float, "least": float},
    )
    swaps: pd.DataFrame = table(
        "swaps.csv",
        {"model": str, "swap": str, "half": str, "layer": int, "depth": float, "chosen": bool}
        | {"prompts": int, "wanted": float, "least": float, "most": float},
    )
    swapped_heads: pd.DataFrame = table(
        "swapped_heads.csv",
        {"model": str, "heads": int, "wanted": float, "random": float, "more": int, "pairs": int}
        | {"testable": bool},
    )
    claims: pd.DataFrame = table(
        "claims.csv", {"claim": str, "topic": str, "statement": str}, more=str
    )

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Compare this model's results, made first where they are missing, with those of others."""
        rows, shared, depth, swaps, heads, verdicts = [], [], [], [], [], []
        for name in dict.fromkeys([at["model"], *at["compare"]]):
            of = _Results(at, name)
            rows.append(of.row())
            shared += of.shared
            depth += of.depth
            swaps += of.swaps
            heads += of.heads
            verdicts += of.verdicts
        told = pd.DataFrame(depth, columns=list(cls.empty("depth")))
        return cls(
            models=pd.DataFrame(rows),
            shared=pd.DataFrame(shared, columns=list(cls.empty("shared"))),
            depth=told,
            order=pd.DataFrame(role_order(told), columns=list(cls.empty("order"))),
            swaps=pd.DataFrame(swaps, columns=list(cls.empty("swaps"))),
            swapped_heads=pd.DataFrame(heads, columns=list(cls.empty("swapped_heads"))),
            claims=_side_by_side(verdicts, cls.empty("claims")),
        )

    @property
    def compared(self) -> list[str]:
        """The names of the models whose results are here."""
        return self.models.loc[self.models["here"], "name"].to_list()


class _Results:
    """One model's results, as far as they are there; what is not, is in ``missing``.

    The model of the run has them made. Those of other models are read as they are.
    """

    def __init__(self, at: Setting, name: str) -> None:
        self.at, self.name, self.own = at, name, name == at["model"]
        self.missing: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.shared, self.depth, self.swaps, self.heads, self.verdicts = [], [], [], [], []
        parts = (self._read_shared, self._read_depth, self._read_interchange, self._read_verdicts)
        for read in parts:
            try:
                read()
            except UserError as error:
                self.missing[read.__name__.removeprefix("_read_")] = str(error)

    def row(self) -> dict[str, Any]:
        """Its row of ``models``."""
        here = bool(self.shared or self.depth or self.swaps or self.verdicts)
        missing = "; ".join(f"{what}: {why}" for what, why in self.missing.items())
        file = Path(self.at["results"]).name
        command = f"make book MODEL={self.name} PARAMS=params/{file}.yml"
        title = self.facts.get("title", self.name)
        shape = {k: self.facts.get(k) for k in ("layers", "heads")}
        return {"name": self.name, "title": title, **shape, "here": here} | {
            "missing": missing,
            "command": command,
        }

    def _where(self, stage: str, task: str | None = None) -> Path:
        """The directory with a stage's results, whole and made with the parameters of this run."""
        if self.own:
            return self.at.made(stage, task)
        where = self.at.directory.parent / zoo.slug(self.name) / (task or "")
        record = where / f"{stage}.run.json"
        if not record.is_file():
            raise UserError(f"{stage} of {task or 'all tasks'} was not run")
        told = store.read_json(record)
        if told.get("skipped"):
            raise UserError(f"{stage} of {task or 'all tasks'} was skipped: {told['skipped']}")
        own, made = self.at.parameters, told["parameters"]
        other = [k for k in own if k in made and k not in _OWN and own[k] != made[k]]
        if other:
            raise UserError(f"{stage} was run with another value of {', '.join(other)}")
        if not self.at.current(record):
            raise UserError(f"{stage} of {task or 'all tasks'} {OUTDATED}")
        return where

    def _read_shared(self) -> None:
        where = self._where("06_cross_task")
        self.facts = CrossTask.one(where, "model")
        heads, layered = (
            CrossTask.one(where, "shared")["heads"],
            CrossTask.one(where, "layer_matched"),
        )
        tasks = CrossTask.one(where, "tasks")
        row = {"model": self.name, "heads": len(heads["shared"])}
        row |= {k: heads[k] for k in ("expected", "p", "total")}
        row |= {f"layer_{k}": layered[k] for k in ("expected", "p")}
        self.shared = [row | {"tasks": int((~tasks["control"]).sum())}]

    def _read_depth(self) -> None:
        for task in self.at["tasks"]:
            components = ComponentRoles.one(self._where("05_component_roles", task), "components")
            if (components["role"] == "").any():
                raise UserError(f"the roles of {task} cannot all be told")
            last = components["layer"].max()
            held = components[components["in_circuit"] & (components["role"] != NONE)]
            for role, layers in held.groupby("role", sort=True)["layer"]:
                depth = layers / last
                row = {"model": self.name, "task": task, "role": role, "n": len(layers)}
                row |= {"first": depth.min(), "median": depth.median(), "last": depth.max()}
                self.depth.append(row)

    def _read_interchange(self) -> None:
        where = self._where("11_interchange")
        best, blocks = (Interchange.one(where, name) for name in ("best", "n_layers"))
        for key, rows in swap_kinds(Interchange.one(where, "layers")).groupby(
            ["swap", "half", "layer"]
        ):
            swap, half, layer = key
            row = {"model": self.name, "swap": swap, "half": half, "layer": layer}
            row |= {"depth": layer / blocks, "chosen": layer == best, "prompts": rows["n"].sum()}
            shares = rows["wanted"].agg(["mean", "min", "max"])
            self.swaps.append(row | dict(zip(("wanted", "least", "most"), shares, strict=True)))
        heads, tests = (Interchange.one(where, name) for name in ("heads", "tests"))
        across = heads[(heads["source"] != heads["base"]) & (heads["kind"] == "deviation")]
        wanted = across.groupby("set")["wanted"].mean()
        if "shared heads" in wanted:
            row = {"model": self.name, "heads": len(Interchange.one(where, "shared"))}
            row |= {"wanted": wanted["shared heads"], "random": wanted.get("random heads")}
            row |= {"more": int((tests["q"] < LEVEL).sum()), "pairs": len(tests)}
            # The least p of a rank: no random set shifts as much.
            self.heads = [row | {"testable": bool((1 / (tests["draws"] + 1) < LEVEL).any())}]

    def _read_verdicts(self) -> None:
        table = Claims.one(self._where("09_claims"), "verdicts")
        columns = table[["claim", "topic", "statement", "verdict"]]
        self.verdicts = columns.assign(model=self.name).to_dict("records")


_OWN = ("model", "compare", "task", "results", "device")
"""Parameters that may differ between models that are compared."""


def swap_kinds(layers: pd.DataFrame) -> pd.DataFrame:
    """Rows of :attr:`Interchange.layers` by the kinds of swap that are compared, in ``swap``."""
    same = layers["source"] == layers["base"]
    kinds = {
        "another task": ~same & (layers["kind"] == "deviation"),
        "the same task": same & (layers["kind"] == "deviation"),
        "placebo": layers["kind"] == "placebo",
    }
    return pd.concat([layers[rows].assign(swap=kind) for kind, rows in kinds.items()])


def role_order(depth: pd.DataFrame) -> list[dict[str, Any]]:
    """Whether pairs of models have their roles in the same order of depth.

    Args:
        depth: As :class:`AcrossModels` keeps it; a role's depth is the mean over tasks.

    Returns:
        Rows of ``order``. Ties count as Kendall's tau-b counts them; with them p is not exact.
    """
    by_model = depth.groupby(["model", "role"])["median"].mean()
    rows = []
    for first, second in combinations(dict.fromkeys(depth["model"]), 2):
        pair = pd.concat([by_model[first], by_model[second]], axis=1, join="inner")
        least = min(1.0, 2 / factorial(len(pair)))  # both orders that agree wholly, of all
        row = {"first": first, "second": second, "roles": ", ".join(pair.index), "least": least}
        tau = p = float("nan")
        if len(pair) > 1:
            tau, p = kendalltau(pair.iloc[:, 0], pair.iloc[:, 1])
        rows.append(row | {"tau": tau, "p": p if least <= 0.05 else float("nan")})
    return rows


def _side_by_side(rows: list[dict[str, str]], empty: pd.DataFrame) -> pd.DataFrame:
    """Verdicts with a column per model; claims in the order of the first model's."""
    if not rows:
        return empty
    table = pd.DataFrame(rows)
    known = table.drop_duplicates("claim").set_index("claim")[["topic", "statement"]]
    wide = table.pivot(index="claim", columns="model", values="verdict")
    order = list(dict.fromkeys(table["model"]))
    return known.join(wide[order]).fillna("").reset_index()
