"""What the tasks share: their circuits laid over each other, against chance and against controls.

1. Each task's circuit, and control tasks without any sequence, on prompts that no search has seen.
2. Do circuits share more components and edges than chance gives? Does importance agree without a
   cut at a threshold?
3. Does a circuit do the other tasks, and does its loss harm them: more than random circuits of its
   shape, more than tasks without a sequence and plain text?
4. Do shared heads have the same role in each task?
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd
import torch

from seqcirc_utils import statistics
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.text import text_loss
from seqcirc_utils.analyses.overlap import (
    OVERLAP_COLUMNS,
    EdgeOverlap,
    Overlap,
    edge_overlap,
    importance_correlation,
    layer_overlap,
    overlap,
    overlap_by_search,
    overlap_table,
    shared_and_rest,
)
from seqcirc_utils.analyses.role_agreement import role_agreement, role_holders
from seqcirc_utils.analyses.roles import NONE
from seqcirc_utils.analyses.transfer import against_random, transfer
from seqcirc_utils.chapters import circuit_tasks
from seqcirc_utils.chapters.circuit_tasks import TITLES, Tried
from seqcirc_utils.chapters.findings import Findings, each, part, table
from seqcirc_utils.chapters.profiles import COLUMNS
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.chance import random_like
from seqcirc_utils.circuits.search import ranked
from seqcirc_utils.components import Component, by_kind, components
from seqcirc_utils.errors import UserError, section

SECTIONS = ("circuits", "edges", "random", "text", "roles")
"""What there may be nothing to compare of."""

_INTERVAL = each(float, "mean", "low", "high")
_OVERLAP = {name: float for name in OVERLAP_COLUMNS} | {"sizes": str, "shared": int}


@dataclass(frozen=True, kw_only=True)
class CrossTask(Findings):
    """What the tasks' circuits share, and what each does on the other tasks.

    Scores are shares of the whole model's mean logit difference on a task, 1 for the whole model.
    Sets of components are named ``<task> circuit``, ``ioi circuit`` (found here), ``core`` (in all
    tasks' circuits) and ``<task> rest`` (what a circuit has beyond the core).

    Attributes:
        tasks: A row per task that has a circuit, then per control: its mean logit difference with
            the 95% interval, the shares of prompts where the answer is ``preferred`` to the last
            member and where it is on top of all tokens (``accuracy``).
        transfer: A row per way to ablate, set and task: the share that is left, with its interval.
        random: The same for each random circuit, of a circuit's size or of its layers; on fewer
            prompts.
        against_random: Each circuit beside the mean of its random ones, with a p-value.
        overlap: Components shared by each pair of circuits and by all, against chance.
        by_search: The heads that all circuits share, for each search that found them.
        importance: Effect of ablating each component, a column per task's title.
        correlation: Spearman correlation of the heads' effects between tasks.
        profiles: All that the chapters found of each component, by task; see
            :data:`~seqcirc_utils.chapters.profiles.COLUMNS`.
        text: Rise of the next-token loss on plain text (nats per token) without each set, without
            its heads alone, and without random heads of the same layers (mean, and p).
        roles: Who has each role: shared heads, and each task's others; names joined by commas.
        assigned: Every component's role in each task and its confidence, from 0 to 1.
        edges: Edges in all circuits.
        sets: Name to components.
        shared: ``heads`` and ``MLPs`` in all circuits: which, how many chance gives, p, the total.
        layer_matched: What chance gives that keeps to the circuits' layers, for heads.
        role_agreement: Whether shared heads have one role in all tasks; none without roles, or
            with a single task.
        outside: The search for the indirect object's circuit: ``trials`` and ``prompts``; empty
            where there is none.
        text_loss: Of the whole model: ``mean`` (nats per token) over ``pieces`` of text; and of how
            many ``draws`` the random heads' mean and p are.
        n_prompts: Prompts of a task.
        n_random_prompts: Prompts of a task that random circuits are scored on.
        model: Its ``title``, ``layers`` and ``heads`` in a layer.
        left_out: Tasks, controls and circuits that are not compared, and why.
        missing: Sections that do not apply, and why.
    """

    stage = "06_cross_task"

    tasks: pd.DataFrame = table(
        "tasks.csv", {"task": str} | _INTERVAL, control=bool, preferred=float, accuracy=float
    )
    transfer: pd.DataFrame = table("csv", {"mode": str, "set": str, "task": str} | _INTERVAL)
    random: pd.DataFrame = table(
        "random.csv", each(str, "mode", "circuit", "kind"), draw=int, task=str, mean=float
    )
    against_random: pd.DataFrame = table(
        "against_random.csv",
        each(str, "mode", "circuit", "kind", "task") | each(float, "value", "random", "p"),
    )
    overlap: pd.DataFrame = table("overlap.csv", each(str, "kind", "tasks") | _OVERLAP)
    by_search: pd.DataFrame = table("by_search.csv", each(str, "search", "tasks") | _OVERLAP)
    importance: pd.DataFrame = table("importance.csv", component=str, more=float)
    correlation: pd.DataFrame = table("correlation.csv", task=str, more=float)
    profiles: pd.DataFrame = table("profiles.csv", COLUMNS)
    text: pd.DataFrame = table(
        "text.csv",
        {"ablated": str}
        | _INTERVAL
        | each(float, "heads_mean", "heads_low", "heads_high", "random", "p"),
    )
    roles: pd.DataFrame = table("roles.csv", role=str, shared=str, changing=str, more=str)
    assigned: pd.DataFrame = table(
        "assigned_roles.csv", task=str, component=str, role=str, confidence=float
    )
    edges: EdgeOverlap = part("edges.json", EdgeOverlap)
    sets: dict[str, list[str]]
    shared: dict[str, dict[str, Any]]
    layer_matched: dict[str, float]
    role_agreement: dict[str, float] | None
    outside: dict[str, int]
    text_loss: dict[str, float]
    n_prompts: int
    n_random_prompts: int
    model: dict[str, Any]
    left_out: dict[str, str]
    missing: dict[str, str]

    @property
    def circuits(self) -> dict[str, set[Component]]:
        """Task to circuit."""
        held = self.tasks.loc[~self.tasks["control"], "task"]
        return {t: set(map(Component.parse, self.sets[f"{t} circuit"])) for t in held}

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Compare all tasks; see the class."""
        lm, tried = at.model, circuit_tasks.compared(at)
        alike = _alike(tried)
        heads = [Component.parse(name) for name in alike["shared"]["heads"]["shared"]]
        roles = _roles(tried, heads)
        sets, outside = _sets(tried)
        shares = transfer(tried.every, sets, at["seed"], progress="Transfer")
        drawn = {kind: _random(tried, by_layer=kind == "layer") for kind in ("size", "layer")}
        draws, against = cls.empty("random"), cls.empty("against_random")
        with section(tried.missing, "random"):
            draws, against = against_random(
                tried.few, tried.held, drawn, progress="Random circuits"
            )
        text, whole = cls.empty("text"), {}
        with section(tried.missing, "text"):
            text, whole = _text(tried, sets, drawn["layer"])
        _check(tried, shares, alike["overlap"])
        none = dict.fromkeys(SECTIONS, "no task is left that has a circuit.")
        return cls(
            tasks=_scores(tried),
            transfer=shares,
            random=draws,
            against_random=against,
            profiles=pd.concat(tried.profiles or [cls.empty("profiles")], ignore_index=True),
            text=text,
            text_loss=whole,
            sets={name: sorted(map(str, s)) for name, s in sets.items()},
            outside=outside,
            n_prompts=at["n_prompts"],
            n_random_prompts=len(circuit_tasks.few(at)),
            model={"title": lm.facts.title, "layers": lm.n_layers, "heads": lm.n_heads},
            left_out=tried.left_out,
            missing=tried.missing if tried.circuits else none,
            **alike,
            **roles,
        )


def _scores(tried: Tried) -> pd.DataFrame:
    """How well the whole model does each task."""
    rows = []
    for task, evaluator in tried.every.items():
        intact = evaluator.intact
        rows.append(
            {"task": task}
            | vars(statistics.interval(intact.logit_diff, tried.at["seed"]))
            | {
                "control": task not in tried.circuits,
                "preferred": (intact.logit_diff > 0).float().mean().item(),
                "accuracy": statistics.rate(intact.correct).mean,
            }
        )
    return pd.DataFrame(rows, columns=[*CrossTask.empty("tasks")])


def _alike(tried: Tried) -> dict[str, Any]:
    """How alike the circuits are, and the importance of all heads: fields of the findings."""
    lm, kinds = tried.at.model, [by_kind(circuit) for circuit in tried.held.values()]
    totals = {"heads": lm.n_layers * lm.n_heads, "MLPs": lm.n_layers}
    shared = {kind: Overlap([], 0.0, 1.0, total) for kind, total in totals.items()}
    layered = shared["heads"]
    if kinds:
        shared = {k: overlap([circuit[k] for circuit in kinds], totals[k]) for k in totals}
        layered = layer_overlap([circuit["heads"] for circuit in kinds], lm.n_layers, lm.n_heads)
    edges = EdgeOverlap()
    with section(tried.missing, "edges"):
        edges = edge_overlap({task: circuit.edges for task, circuit in tried.circuits.items()})
    importance = pd.DataFrame({TITLES[task]: effect for task, effect in tried.effects.items()})
    importance.index.name = "component"
    heads = importance[[not str(name).startswith("mlp") for name in importance.index]]
    return {
        "overlap": overlap_table(tried.held, totals),
        "by_search": overlap_by_search(tried.by_search, totals),
        "shared": {k: vars(s) | {"shared": list(map(str, s.shared))} for k, s in shared.items()},
        "layer_matched": {"expected": layered.expected, "p": layered.p},
        "edges": edges,
        "importance": importance.reset_index(),
        "correlation": importance_correlation(heads).rename_axis("task").reset_index(),
    }


def _roles(tried: Tried, shared: list[Component]) -> dict[str, Any]:
    """Each component's role by task, and whether shared heads keep theirs: fields of the findings.

    Args:
        tried: The tasks.
        shared: Heads in every circuit.
    """
    found = [CrossTask.empty("assigned")]
    by_task: dict[str, dict[Component, str]] = {}
    holders, agreement = CrossTask.empty("roles"), None
    nothing = {"assigned": found[0], "roles": holders, "role_agreement": agreement}
    if "roles" in tried.missing:  # a task's are not there
        return nothing
    with section(tried.missing, "roles"):
        for task, told in tried.roles.items():
            by_task[task] = told.by_component()
            found.append(told.components.assign(task=task)[[*found[0]]])
        holders = role_holders(by_task, tried.held)
        if len(by_task) > 1:
            seed = tried.at["seed"]
            agreement = vars(role_agreement(by_task, shared, none=NONE, seed=seed))
        return {"assigned": pd.concat(found), "roles": holders, "role_agreement": agreement}
    return nothing


def _sets(tried: Tried) -> tuple[dict[str, set[Component]], dict[str, int]]:
    """All sets that are tried on every task; and how the circuit from outside was searched for."""
    if not tried.circuits:
        tried.left_out["ioi circuit"] = "no circuit is left to compare it with."
        return {}, {}
    sets = {f"{task} circuit": circuit for task, circuit in tried.held.items()}
    outside: dict[str, int] = {}
    with section(tried.left_out, "ioi circuit"):
        if "ioi" not in tried.every:
            raise UserError(tried.left_out[TITLES["ioi"]])
        prompts = tried.at.searched(tried.sets["ioi"].discovery)
        search = ranked(
            Evaluator(tried.at.model, prompts, tried.every["ioi"].replacement),
            tried.at["threshold"],
            checkpoint=tried.at.checkpoint("ioi.json"),
            progress="Circuit of the indirect object",
        )
        sets["ioi circuit"] = search.components
        outside = {"trials": search.trials, "prompts": len(prompts)}
    return sets | shared_and_rest(tried.held), outside


def _random(tried: Tried, by_layer: bool) -> dict[str, list[list[Component]]]:
    """Random circuits in the shape of each task's."""
    at, everything = tried.at, components(tried.at.model)
    return {
        task: random_like(circuit, everything, at["n_matched"], at["seed"], by_layer=by_layer)
        for task, circuit in tried.held.items()
    }


def _text(
    tried: Tried,
    sets: Mapping[str, set[Component]],
    drawn: Mapping[str, list[list[Component]]],
) -> tuple[pd.DataFrame, dict[str, float]]:
    """What plain text loses without each set, and the whole model's loss on it.

    Args:
        tried: The tasks.
        sets: Name to components.
        drawn: Task to random circuits with as many heads in each layer.
    """
    if not tried.circuits:
        raise UserError("no circuit is left to ablate.")
    seed, n = tried.at["seed"], tried.at["n_matched"]
    heads = [by_kind(s)["heads"] for s in sets.values()]
    random = [by_kind(set(draw))["heads"] for draws in drawn.values() for draw in draws]
    ablated = [[], *sets.values(), *heads, *random]
    loss = text_loss(tried.at.model, ablated, progress="Plain text")  # [1 + set, piece]
    rises = (loss[1:] - loss[0]).split([len(sets), len(heads), len(random)])
    null = dict(zip(drawn, rises[2].mean(1).reshape(len(drawn), n).tolist(), strict=True))
    rows = []
    for name, whole, alone in zip(sets, rises[0], rises[1], strict=True):
        draws = null.get(name.removesuffix(" circuit"), [])
        cost = statistics.interval(alone, seed)
        rows.append(
            {"ablated": name}
            | vars(statistics.interval(whole, seed))
            | {f"heads_{bound}": value for bound, value in vars(cost).items()}
            | {
                "random": sum(draws) / n if draws else float("nan"),
                "p": statistics.percentile_p(cost.mean, draws) if draws else float("nan"),
            }
        )
    about = {"mean": loss[0].mean().item(), "pieces": loss.shape[1], "draws": n}
    return pd.DataFrame(rows), about


def _check(tried: Tried, shares: pd.DataFrame, overlaps: pd.DataFrame) -> None:
    """All components kept are the whole model; shares are numbers, p-values probabilities."""
    everything = components(tried.at.model)
    for task, evaluator in tried.few.items():
        whole, kept = evaluator.intact.logit_diff, evaluator.kept([everything]).logit_diff[0]
        assert torch.allclose(kept, whole, atol=1e-3, rtol=1e-4), f"{task}: {kept} for {whole}"
    assert shares[["mean", "low", "high"]].notna().all(axis=None)
    assert overlaps["p"].between(0, 1).all()
