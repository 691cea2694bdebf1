"""Whether the circuits serve other abilities: probes, asked again with heads ablated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd
from tqdm import tqdm

from seqcirc_utils.ablation.answers import Bench
from seqcirc_utils.analyses import generalisation
from seqcirc_utils.analyses.generalisation import Ablated
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.findings import Findings, each, table
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.choices import KINDS
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo, section
from seqcirc_utils.prompts.probes import probes
from seqcirc_utils.prompts.questions import Fitted
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import corrected

HeadSets = Mapping[str, set[Component]]
"""Heads that are ablated together, by name."""


@dataclass(frozen=True, kw_only=True)
class Generalisation(Findings):
    """What the model can do beyond the tasks, and what is left of it without some of its heads.

    Attributes:
        effects: A row per probe, kind of ablation and set of heads. Accuracies are shares of the
            questions answered rightly before; ``low`` and ``high`` are the exact 95% interval of
            ``accuracy_after``; log probabilities are in nats; ``q`` is ``p`` corrected for all
            tests. Where no random set was drawn, what is random is NaN, and ``p`` is NaN where too
            few were.
        planned: A row per kind of ablation, set of several heads and subject of the paper; see
            :func:`~seqcirc_utils.analyses.generalisation.planned`. ``q`` is ``p`` corrected for
            these tests alone.
        probes: A row per probe: the whole model's accuracy with its exact 95% interval,
            ``logit_diff`` (log probability of the answer minus that of the wrong one, in nats), and
            why it is not ``used``.
        model: The model's title.
        key_heads: The heads whose ablation costs the tasks most, the worst first.
        n_draws: Random sets that each set is compared with (fewer where there are not so many).
        headless: Sets without heads, which are left out.
        without: Tasks without a circuit (their titles), and why.
        missing: What does not apply to the model, and why.
    """

    stage = "07_generalisation"

    effects: pd.DataFrame = table(
        "csv",
        each(str, "probe", "group", "kind", "set")
        | each(int, "n_heads", "n")
        | each(float, "accuracy_before", "accuracy_after", "low", "high", "retained")
        | each(float, "random_mean", "log_prob_change", "random_log_prob_change"),
        n_draws=int,
        p=float,
        q=float,
    )
    planned: pd.DataFrame = table(
        "planned.csv",
        {"kind": str, "set": str, "subject": str, "n_heads": int, "probes": str, "n": int}
        | each(float, "accuracy", "random", "gap", "gap_low", "gap_high", "loss", "random_loss")
        | {"n_draws": int}
        | each(float, "p", "q", "needed"),
    )
    probes: pd.DataFrame = table(
        "probes.csv",
        each(str, "probe", "group", "title", "example")
        | {"n": int}
        | each(float, "chance", "accuracy", "low", "high", "logit_diff"),
        used=bool,
        reason=str,
    )
    model: str
    key_heads: list[str]
    n_draws: int
    headless: list[str]
    without: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Ask every probe, and those that the model can do again with heads ablated."""
        asked = probes([] if at["probes"] == ["all"] else at["probes"], at["seed"])
        circuits, costs, without = _tasks(at)
        key_heads = _key_heads(costs, at["n_key"])
        sets = _sets(circuits, key_heads)

        rows, able = [], []
        for probe in tqdm(asked, desc="Own ability", unit="probe"):
            row, fitted = generalisation.ability(at.model, probe, at["n_items"])
            rows.append(row)
            if fitted is not None:
                able.append(fitted)
        ablated, missing = [], {}
        with section(missing, "effects"):
            ablated = _ablated(at, able, sets)
        effects = pd.DataFrame([one.row() for one in ablated])
        planned = pd.DataFrame(generalisation.planned(ablated, at["seed"]))
        planned = cls.empty("planned") if planned.empty else planned
        planned["q"] = corrected(planned["p"])
        if effects.empty:
            missing.setdefault("effects", "the model can do no probe, or no circuit has heads.")
            effects = cls.empty("effects")
        else:
            effects["q"] = corrected(effects["p"])
            _check(effects, able)
        return cls(
            effects=effects,
            planned=planned[[*cls.empty("planned")]],
            probes=pd.DataFrame(rows),
            model=at.model.facts.title,
            key_heads=list(map(str, key_heads)),
            n_draws=at["n_draws"],
            headless=[name for name, heads in sets.items() if not heads],
            without=without,
            missing=missing,
        )


def _tasks(at: Setting) -> tuple[HeadSets, pd.Series, dict[str, str]]:
    """The heads of each task's circuit, what ablating a component costs the tasks, and what lacks.

    Raises:
        CannotDo: where no task has a circuit.
    """
    heads, changes, without = {}, [], {}
    for task in at["tasks"]:
        try:
            effects = at.read(Patching, task).effects
            circuit = at.read(CircuitDiscovery, task).circuit
        except CannotDo as reason:
            without[TASKS[task].title] = str(reason)
            continue
        heads[task] = {c for c in circuit.components if c.head is not None}
        changes.append(effects.set_index("component")["ablation"])
    if not heads:
        raise CannotDo("There is no circuit of any task: nothing can be ablated.")
    return heads, pd.concat(changes, axis=1).mean(axis=1), without


def _key_heads(changes: pd.Series, n: int) -> list[Component]:
    """The ``n`` heads whose ablation costs most, on average over the tasks."""
    heads = changes[[Component.parse(name).head is not None for name in changes.index]]
    return [Component.parse(name) for name in heads.nsmallest(n).index]


def _sets(circuits: HeadSets, key_heads: Sequence[Component]) -> HeadSets:
    """What is ablated: the shared core, each circuit's heads, the key heads, and each of these."""
    sets = {"shared core": set.intersection(*circuits.values())}
    sets |= {f"{TASKS[task].title.lower()} circuit": heads for task, heads in circuits.items()}
    sets |= {"key heads": set(key_heads)} if len(key_heads) > 1 else {}
    return sets | {f"head {head}": {head} for head in key_heads}


def _ablated(at: Setting, able: Sequence[Fitted], sets: HeadSets) -> list[Ablated]:
    """Every probe without each set, beside random sets where these are asked for."""
    found = []
    for fitted in tqdm(able, desc="Ablation", unit="probe"):
        tested = fitted.only(range(min(at["n_tested"], len(fitted))))
        for kind in KINDS:
            n_draws = at["n_draws"] if kind in at["compared"] else 0
            bench = Bench(at.model, tested, kind)
            found += generalisation.ablated(bench, sets, n_draws=n_draws, seed=at["seed"])
    return found


def _check(effects: pd.DataFrame, able: Sequence[Fitted]) -> None:
    """Ablating nothing changes nothing, and correction makes no p-value smaller."""
    first = effects[effects["probe"] == able[0].probe.name]
    assert (first["accuracy_before"] == 1).all(), "the intact model does not repeat itself"
    assert effects["q"].isna().eq(effects["p"].isna()).all()
    assert not (effects["q"] < effects["p"]).any()
