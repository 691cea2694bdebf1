"""Chapter 15: does the head that matters most depend on the metric?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.metrics import Metrics
from seqcirc_utils.chapters.ranked_tasks import TITLES


@answered()
def answer(found: Metrics) -> Sequence[Part]:
    """The head whose ablation costs most, by task and metric."""
    heads = found.effects[~found.effects["component"].str.startswith("mlp")]
    if heads.empty:
        return ["No head was ablated by itself here: nothing to tell."]
    worst = heads.loc[heads.groupby(["task", "metric"], sort=False)["mean"].idxmin()]
    by_task = worst.pivot(index="task", columns="metric", values="component")
    by_task = by_task[list(dict.fromkeys(worst["metric"]))].loc[list(dict.fromkeys(worst["task"]))]
    cost = worst.set_index(["task", "metric"])["mean"]
    one = [TITLES[task] for task, names in by_task.iterrows() if names.nunique() == 1]
    table = pd.DataFrame({"task": [TITLES[task] for task in by_task.index]})
    for metric in by_task:
        table[f"by {metric}"] = [
            f"{name} ({100 * cost[task, metric]:+z.0f}%)" for task, name in by_task[metric].items()
        ]
    return [
        f"One head costs most by every metric in {len(one)} of {len(by_task)} tasks "
        f"({', '.join(one) or 'none'}).",
        table,
        "Only heads that were ablated alone are compared: the best by the logit difference, and "
        "those that are shared. A rerun with a larger number adds more, which may come first by "
        "the other metrics.",
    ]
