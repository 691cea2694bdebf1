"""Chapter 08: does a circuit predict the model better where the model is sure?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.prediction_and_editing import PredictionAndEditing
from seqcirc_utils.prompts.sequences import TASKS


@answered("prediction")
def answer(found: PredictionAndEditing) -> Sequence[Part]:
    """How often the circuit prefers what the model prefers, by how sure the model is."""
    by_task = found.points.groupby("task", sort=False)
    halves = {task: agreeing(rows) for task, rows in by_task if len(rows) > 1}
    if not halves:
        return ["One prompt of a task cannot be halved: nothing to tell."]
    better = sum(sure > unsure for unsure, sure in halves.values())
    table = pd.DataFrame(
        [
            {
                "task": TASKS[task].title,
                "where the model is less sure": f"{unsure:.0%}",
                "where it is surer": f"{sure:.0%}",
            }
            for task, (unsure, sure) in halves.items()
        ]
    )
    return [
        "Halve the prompts of a task by the size of the model's own logit difference. How often do "
        "circuit and model prefer the same of answer and last member? The circuit does better "
        f"where the model is surer in {better} of {len(halves)} tasks.",
        table,
        "Read from the points of the scatter above. With only the longest prompts the model is "
        "surer of most; a rerun draws them anew, and has fewer of them.",
    ]


def agreeing(points: pd.DataFrame) -> tuple[float, float]:
    """The share of prompts with one sign of both, in the less and in the more sure half."""
    order = points["whole"].abs().sort_values(kind="stable").index
    same = ((points["whole"] > 0) == (points["circuit"] > 0)).loc[order]
    half = len(same) // 2
    return float(same.iloc[:half].mean()), float(same.iloc[half:].mean())
