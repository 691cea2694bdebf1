"""The summary of a sweep: the circuits of every model, task and seed, and what is still missing."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from seqcirc_utils import components, store
from seqcirc_utils.analyses import overlap
from seqcirc_utils.circuits.circuit import Circuit
from seqcirc_utils.components import Component
from seqcirc_utils.workflow import records
from seqcirc_utils.workflow.planning import DISCOVERY, Plan

_MEANING = """\
Each row is one task of one model; *mean (least to most)* over the seeds that are done.
*Faithfulness* is the share of the whole model's logit difference that the circuit keeps, on
prompts that the search did not see. *Overlap* is the Jaccard index of two circuits (heads and
MLPs), its mean over all pairs of seeds; *with other tasks*, over all pairs with another task's
circuit of the same seed. *In all seeds* counts heads, beside the number to expect of independent
random sets of these sizes.
"""


def circuits(plans: Sequence[Plan]) -> tuple[pd.DataFrame, dict[tuple, Circuit]]:
    """Return a row for each model, task and seed, and the circuits that are there by these three.

    Results of other parameters or sources count as missing.
    """
    rows, found = [], {}
    for plan in plans:
        for job in (job for job in plan.jobs() if job.stage == DISCOVERY):
            row = {"model": plan.model, "task": job.task, "seed": plan.seed, "done": False}
            file = job.record.with_name(f"{DISCOVERY}.circuit.json")
            if file.is_file() and job.is_current() and not records.skipped(job.record):
                record, circuit = store.read_json(job.record), Circuit.load(file)
                found[plan.model, job.task, plan.seed] = circuit
                row |= {
                    "done": True,
                    "heads": len(circuit.heads),
                    "mlps": len(circuit.mlps),
                    "faithfulness": circuit.faithfulness["mean"],
                    "seconds": record["seconds"],
                    "model_heads": record["model"]["n_layers"] * record["model"]["n_heads"],
                }
            rows.append(row)
    columns = ["heads", "mlps", "faithfulness", "seconds", "model_heads"]
    table = pd.DataFrame(rows, columns=["model", "task", "seed", "done", *columns])
    return table.astype({"done": bool}), found


def jaccard(a: set[Component], b: set[Component]) -> float:
    """Shared members over all members of two sets; two empty sets are alike."""
    return len(a & b) / len(a | b) if a | b else 1.0


def _mean(values: Iterable[float]) -> float:
    return pd.Series(list(values), dtype=float).mean()


def by_task(table: pd.DataFrame, found: dict[tuple, Circuit]) -> pd.DataFrame:
    """Return a row for each model and task: sizes, faithfulness, overlap across seeds and tasks."""
    rows = []
    for (model, task), part in table.groupby(["model", "task"], sort=False):
        done = part[part["done"]]
        row = {"model": model, "task": task, "seeds": len(part), "done": len(done)}
        for name in ("heads", "mlps", "faithfulness"):
            row |= {name: done[name].mean(), f"{name}_min": done[name].min()}
            row |= {f"{name}_max": done[name].max()}
        own = {s: c.components for (m, t, s), c in found.items() if (m, t) == (model, task)}
        others = [
            jaccard(own[s], c.components)
            for (m, t, s), c in found.items()
            if m == model and t != task and s in own
        ]
        row["overlap"] = _mean(jaccard(a, b) for a, b in combinations(own.values(), 2))
        row["other_tasks"] = _mean(others)
        row |= {"in_all": float("nan"), "in_all_expected": float("nan")}
        if len(own) > 1:
            heads = [components.by_kind(circuit)["heads"] for circuit in own.values()]
            shared = overlap.overlap(heads, int(done["model_heads"].max()))
            row |= {"in_all": len(shared.shared), "in_all_expected": shared.expected}
        rows.append(row)
    return pd.DataFrame(rows)


def _spread(row: pd.Series, name: str, digits: int) -> str:
    if not row["done"]:
        return ""
    mean, low, high = (row[name + end] for end in ("", "_min", "_max"))
    return f"{mean:.{max(digits, 1)}f} ({low:.{digits}f} to {high:.{digits}f})"


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def page(plans: Sequence[Plan], table: pd.DataFrame, tasks: pd.DataFrame) -> str:
    """Return the summary as Markdown."""
    missing = table[~table["done"]]
    lines = [f"# Sweep {plans[0].file.stem}", ""]
    lines += [f"{len(table) - len(missing)} of {len(table)} circuits are done.", "", _MEANING]
    heads = ["model", "task", "seeds", "heads", "MLPs", "faithfulness", "overlap"]
    heads += ["with other tasks", "in all seeds", "expected"]
    lines += [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for _, row in tasks.iterrows():
        cells = [row["model"], row["task"], f"{row['done']} of {row['seeds']}"]
        cells += [_spread(row, "heads", 0), _spread(row, "mlps", 0)]
        cells += [_spread(row, "faithfulness", 2), _number(row["overlap"], 2)]
        cells += [_number(row["other_tasks"], 2), _number(row["in_all"], 0)]
        lines.append(f"| {' | '.join([*cells, _number(row['in_all_expected'], 1)])} |")
    if len(missing):
        lines += ["", "## Missing", "", "Start the sweep again to make them.", ""]
        for (model, task), part in missing.groupby(["model", "task"], sort=False):
            lines.append(f"- {model}, {task}: seeds {', '.join(map(str, part['seed']))}")
    return "\n".join(lines) + "\n"


def write(plans: Sequence[Plan]) -> Path:
    """Write ``circuits.csv``, ``summary.csv`` and ``summary.md`` from what is there."""
    where = store.ROOT / "results" / plans[0].name
    table, found = circuits(plans)
    tasks = by_task(table, found)
    store.write_csv(where / "circuits.csv", table)
    store.write_csv(where / "summary.csv", tasks)
    return store.write_text(where / "summary.md", page(plans, table, tasks))
