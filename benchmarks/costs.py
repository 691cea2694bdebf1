"""What each job of a book took, from the records of its last run, beside what was known before.

A slow-down is seen in the last column. With ``--write`` these become the figures that the estimate
of a run is made from, in ``benchmarks/costs.json``.

    python benchmarks/costs.py [--params params/default.yml] [--write]
"""

import argparse
from pathlib import Path

import pandas as pd

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow import costs
from seqcirc_utils.workflow.planning import Plan, read_plan

FILE = store.ROOT / "benchmarks" / "costs.json"


def measured(plan: Plan) -> pd.DataFrame:
    """What the jobs of a plan took.

    Returns:
        A row per stage, by name: ``cpu_seconds`` of one job, a mean over tasks, and the most memory
        of one, ``memory_mb``.

    Raises:
        UserError: where a job's results are missing or outdated.
    """
    jobs = plan.jobs()
    if missing := [job.name for job in jobs if not job.is_current()]:
        raise UserError(
            f"{len(missing)} of {len(jobs)} jobs have no current results, {missing[0]} first: "
            f"run make book PARAMS={plan.file} before."
        )
    records = [store.read_json(job.record) for job in jobs]
    table = pd.DataFrame(records)[["stage", "cpu_seconds", "memory_mb"]]
    return table.groupby("stage").agg({"cpu_seconds": "mean", "memory_mb": "max"})


def main(arguments: list[str] | None = None) -> None:
    """Print what was measured beside what was known; with ``--write`` keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=store.ROOT / "params" / "default.yml")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args(arguments)
    known = costs.shipped()
    try:
        plan = read_plan(asked.params)
        found = measured(plan)
    except UserError as error:
        parser.error(str(error))
    if plan.model != known["model"]:
        parser.error(f"these are of {plan.model}, those known of {known['model']}.")
    size, all_known = plan.values["n_prompts"], known["cpu_seconds"]
    found["before"] = [costs.at_size(all_known.get(stage, {}), size) for stage in found.index]
    found["ratio"] = found["cpu_seconds"] / found["before"].astype(float)
    print(found.round(2).to_string())
    print(f"All: {found['cpu_seconds'].sum():.0f} CPU-seconds of one job of each stage.")
    if asked.write:
        for stage, row in found.iterrows():
            own = all_known.setdefault(stage, {})
            own["any" if "any" in own else str(size)] = round(row["cpu_seconds"])
        memory = {stage: int(mb) for stage, mb in found["memory_mb"].items()}
        known.setdefault("memory_mb", {})[str(size)] = memory
        store.write_json(FILE, known)


if __name__ == "__main__":
    main()
