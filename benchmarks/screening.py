"""What is lost when chapter 03 ablates on all prompts only what may matter? Beside ablating all.

The book's table is made from benchmarks/screening.json, which this writes, a task at a time: begun
again, it goes on.

    python benchmarks/screening.py [--prompts 32] [--exact 12]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from seqcirc_utils import store
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.ablation.screening import MATTERS, single_effects
from seqcirc_utils.components import components
from seqcirc_utils.models import loading, zoo
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.workflow.fingerprint import versions

N_MEANS = 64
FILE = store.ROOT / "benchmarks" / "screening.json"


def compared(model: loading.Model, task: str, n_prompts: int, n_exact: int) -> dict[str, Any]:
    """A row: how far screened mean effects are from exact ones, in shares of the score."""
    sets = drawing.prompt_sets(model, task, n_prompts=n_prompts, n_means=N_MEANS)
    means = record(model, sets.means).activations.mean()
    evaluator = Evaluator(model, sets.evaluation, means)
    everything, whole = components(model), evaluator.intact.logit_diff.mean()
    begun = time.process_time()
    run, values = single_effects(evaluator, everything, n_exact, progress=f"{task}, screened")
    between = time.process_time()
    exact, _ = single_effects(evaluator, everything, progress=f"{task}, exact")
    seconds = between - begun, time.process_time() - between
    off = (values.mean(1) - exact.mean(1)) / whole
    few = run.isnan().any(1)  # [component]
    gradient = (evaluator.slopes().mean(1) - exact.mean(1)) / whole
    first = (exact[:, :n_exact].mean(1) - exact.mean(1)) / whole
    return {
        "task": task,
        "on_all": int((~few).sum()),
        "largest": off.abs().max().item(),
        "rms": root_mean_square(off[few]),
        "rms_first": root_mean_square(first[few]),
        "rms_gradient": root_mean_square(gradient[few]),
        "cpu_seconds": round(seconds[0], 1),
        "cpu_seconds_exact": round(seconds[1], 1),
    }


def root_mean_square(values: torch.Tensor) -> float:
    """Of no values, 0."""
    return values.square().sum().div(max(1, len(values))).sqrt().item()


def main(arguments: list[str] | None = None) -> None:
    """Run the tasks that are missing, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--tasks", nargs="+", default=["digits", "number_words", "months"])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--exact", type=int, default=12)
    parser.add_argument("--output", type=Path, default=FILE)
    asked = parser.parse_args(arguments)
    if unknown := set(asked.tasks) - set(TASKS):
        parser.error(f"unknown task {', '.join(sorted(unknown))}: known are {', '.join(TASKS)}.")
    if not 2 <= asked.exact < asked.prompts:
        parser.error("exact is at least 2, and less than prompts.")
    about: dict[str, Any] = {
        "model": asked.model,
        "prompts": asked.prompts,
        "exact": asked.exact,
        "matters": MATTERS,
        "versions": versions(),
    }
    done = store.read_json(asked.output) if asked.output.is_file() else {}
    rows = done.pop("rows", []) if {k: done.get(k) for k in about} == about else []
    model = loading.load(asked.model, "cpu")
    about["components"] = len(components(model))
    for task in asked.tasks:
        if not any(row["task"] == task for row in rows):
            rows.append(compared(model, task, asked.prompts, asked.exact))
            print(rows[-1], flush=True)
            store.write_json(asked.output, about | {"rows": rows})
    print(f"Written to {asked.output}")


if __name__ == "__main__":
    main()
