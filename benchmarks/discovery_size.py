"""On how many prompts must a circuit be searched for? The ranked search on 4, 8, 16 … prompts.

Each search is judged on the same further prompts, and beside the same search on as many prompts
that share none with it. The book's table and figure are made from benchmarks/discovery_size.json,
which this writes, a task at a time: begun again, it goes on.

    python benchmarks/discovery_size.py [--sizes 4 8 16 32] [--judged 64]
"""

import time
from collections.abc import Iterator
from typing import Any

import by_task
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seqcirc_utils import store
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import mean_activations
from seqcirc_utils.circuits.search import ranked
from seqcirc_utils.figures.style import NEUTRAL, closed, save, task_colours, use_style
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.publishing.discovery_size import by_size
from seqcirc_utils.statistics import interval

THRESHOLD, PARTS, N_MEANS = 0.8, 2, 64
FILE = store.ROOT / "benchmarks" / "discovery_size.json"


def searched(model: loading.Model, task: str, sizes: list[int], judged: int) -> Iterator[dict]:
    """A row per size and part: the circuit, its score on unseen prompts, trials, CPU seconds.

    Parts are disjoint halves of the discovery prompts; the sizes of one part are nested.
    """
    most = max(sizes)
    sets = drawing.prompt_sets(
        model, task, n_prompts=judged, n_means=N_MEANS, n_discovery=PARTS * most
    )
    means = mean_activations(model, sets.means)
    judge = Evaluator(model, sets.evaluation, means)
    whole = judge.intact.logit_diff.mean().item()
    for size in sizes:
        for part in range(PARTS):
            prompts = sets.discovery[range(part * most, part * most + size)]
            begun = time.process_time()
            found = ranked(Evaluator(model, prompts, means), THRESHOLD)
            seconds = time.process_time() - begun
            kept = interval(judge.kept([found.components]).logit_diff[0] / whole)
            yield {
                "task": task,
                "prompts": size,
                "part": part,
                "circuit": sorted(map(str, found.components)),
                "trials": found.trials,
                "found_with": found.score,
                "mean": kept.mean,
                "low": kept.low,
                "high": kept.high,
                "cpu_seconds": round(seconds, 1),
            }


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """What circuits keep on unseen prompts, and how alike they are, by the prompts searched on."""
    use_style()
    table = by_size(rows)
    figure, axes = plt.subplots(2, 1, figsize=(5, 6), layout="constrained", sharex=True)
    for task, colour in task_colours(list(table["task"].unique())).items():
        own = table[table["task"] == task]
        look = {"color": colour, "marker": "o", "label": TASKS[task].title}
        axes[0].plot(own["prompts"], own["kept"], **look)
        axes[1].plot(own["prompts"], own["parts"], **look)
        axes[1].plot(own["prompts"], own["largest"], ls="--", **look | {"label": None})
    axes[0].axhline(THRESHOLD, color=NEUTRAL, lw=0.8, ls=":")
    axes[0].set(ylabel="kept on unseen prompts", xscale="log")
    axes[0].legend()
    axes[1].set(xlabel="discovery prompts", ylabel="Jaccard index", ylim=(0, 1.03))
    kinds = {"-": "no prompt in common", "--": f"the same, on {table['prompts'].max()} prompts"}
    handles = [Line2D([], [], color=NEUTRAL, ls=ls, label=said) for ls, said in kinds.items()]
    axes[1].legend(handles=handles, title="beside the circuit from", loc="lower right")
    axes[1].set_xticks(sizes := sorted(table["prompts"].unique()), list(map(str, sizes)))
    axes[1].minorticks_off()
    return closed(figure)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and write after each task."""
    parser = by_task.options(__doc__, FILE)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--judged", type=int, default=64)
    asked = by_task.parsed(parser, arguments)
    if min(*asked.sizes, asked.judged, len(asked.sizes) + 1) < 2:
        parser.error("sizes and judged are whole numbers of at least 2.")
    sizes = sorted(asked.sizes)
    settings = {"threshold": THRESHOLD, "judged": asked.judged, "sizes": sizes}
    rows = by_task.rows(asked, settings, lambda lm, task: searched(lm, task, sizes, asked.judged))
    save(drawn(rows), asked.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
