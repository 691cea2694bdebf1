"""What is lost when chapter 03 ablates on all prompts only what may matter? Beside ablating all.

The book's table is made from benchmarks/screening.json, which this writes, a task at a time: begun
again, it goes on.

    python benchmarks/screening.py [--prompts 32] [--exact 12]
"""

import time
from typing import Any

import by_task
import torch

from seqcirc_utils import store
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import mean_activations
from seqcirc_utils.ablation.screening import MATTERS, single_effects
from seqcirc_utils.components import components
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing

N_MEANS = 64
FILE = store.ROOT / "benchmarks" / "screening.json"


def compared(model: loading.Model, task: str, n_prompts: int, n_exact: int) -> dict[str, Any]:
    """A row: how far screened mean effects are from exact ones, in shares of the score."""
    sets = drawing.prompt_sets(model, task, n_prompts=n_prompts, n_means=N_MEANS)
    means = mean_activations(model, sets.means)
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
    parser = by_task.options(__doc__, FILE)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--exact", type=int, default=12)
    asked = by_task.parsed(parser, arguments)
    if not 2 <= asked.exact < asked.prompts:
        parser.error("exact is at least 2, and less than prompts.")
    settings = {"prompts": asked.prompts, "exact": asked.exact, "matters": MATTERS}
    by_task.rows(asked, settings, lambda lm, task: [compared(lm, task, asked.prompts, asked.exact)])


if __name__ == "__main__":
    main()
