"""What the paper's claims come to for one model, and what the faults of its analysis matter."""

from dataclasses import dataclass
from typing import Self

import pandas as pd

from seqcirc_utils.chapters.findings import Findings, table
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.errors import UserError
from seqcirc_utils.paper import claims, faults
from seqcirc_utils.paper.effects import CARRIED, SUPPORTED, VERDICTS
from seqcirc_utils.paper.evidence import OUTDATED, TASKS, Evidence, published

OF_TASKS: dict[str, tuple[str, ...]] = {
    "01_task_construction": (),
    "02_logit_attribution": (),
    "03_patching": (),
    "04_circuit_discovery": ("03_patching",),
    "05_component_roles": ("03_patching", "04_circuit_discovery"),
}
"""The stages whose results of each task are evidence, and the stages that these need."""
OVERALL = ("06_cross_task", "07_generalisation", "08_prediction_and_editing")
"""Those whose results concern all tasks."""
_STAGES = (*((s, t) for s in OF_TASKS for t in TASKS), *((s, None) for s in OVERALL))


@dataclass(frozen=True, kw_only=True)
class Claims(Findings):
    """A verdict on every claim, and an effect of every fault.

    Attributes:
        verdicts: A row per claim; see :func:`claims.claims_table`.
        effects: A row per fault; see :func:`faults.faults_table`.
        counts: Verdict on what carries over to the number of claims.
        title: The model.
        gpt2: The run of the paper's model whose figures stand in ``reproduced``: its ``name``, and
            what it was ``known_by``; empty if there is none.
    """

    stage = "09_claims"

    verdicts: pd.DataFrame = table("csv", dict.fromkeys(claims.COLUMNS, str) | {"needed": float})
    effects: pd.DataFrame = table("faults.csv", dict.fromkeys(faults.COLUMNS, str))
    counts: dict[str, int]
    title: str
    gpt2: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Judge every claim by the results of the other chapters; no model is run."""
        evidence = Evidence(at.directory, _problems(at))
        gpt2 = _of_gpt2(at, evidence)
        verdicts, effects = claims.claims_table(evidence, gpt2), faults.faults_table(evidence)
        known = [claim["id"] for claim in published()["claims"]]
        assert verdicts["claim"].to_list() == known
        assert set(known) == set(claims.RULES) == set(CARRIED)
        assert set(verdicts["verdict"]) <= set(VERDICTS) and (verdicts["rule"] != "").all()
        assert (verdicts["reason"] != "")[verdicts["verdict"] != SUPPORTED].all()
        assert len(effects) == len(published()["faults"])
        told = {key: gpt2.model[key] for key in ("name", "known_by")} if gpt2 else {}
        counts = {v: int((verdicts["verdict"] == v).sum()) for v in VERDICTS}
        title = evidence.model.get("title", "this model")
        return cls(verdicts=verdicts, effects=effects, counts=counts, gpt2=told, title=title)


def _of_gpt2(at: Setting, evidence: Evidence) -> Evidence | None:
    """Results of the paper's model beside these, as far as they are the present version's."""
    found = evidence.of_gpt2()
    if found is None or found is evidence:
        return found
    problems: dict[tuple[str, str | None], str] = {}
    for stage, task in _STAGES:
        record = found.directory / (task or "") / f"{stage}.run.json"
        if not record.is_file():
            problems[stage, task] = "it was not run."
        elif not at.current(record):
            problems[stage, task] = f"it {OUTDATED}."
    found = Evidence(found.directory, problems)
    return found if found.named else None


def _problems(at: Setting) -> dict[tuple[str, str | None], str]:
    """Stage and task (``None``: all tasks) to why there are no results; the others are made."""
    problems: dict[tuple[str, str | None], str] = {}
    for stage, task in _STAGES:
        lacking = [need for need in OF_TASKS.get(stage, ()) if (need, task) in problems]
        if task and task not in at["tasks"]:
            problems[stage, task] = "the task is not among those of this run."
        elif lacking:  # to try would take long, and end as it did
            problems[stage, task] = f"it needs {lacking[0]}, and {problems[lacking[0], task]}"
        else:
            try:
                at.made(stage, task)
            except UserError as error:
                problems[stage, task] = str(error)
    return problems
