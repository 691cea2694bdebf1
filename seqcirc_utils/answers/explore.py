"""Chapter 14: what the page's three pieces show, counted over all that can be chosen there."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from seqcirc_utils.answers.fold import Part, answered, listed
from seqcirc_utils.chapters.explore import Explore
from seqcirc_utils.prompts.sequences import TASKS


@answered("ablated")
def parts(found: Explore) -> Sequence[Part]:
    """What is left of each task's lead with each task's circuit switched off."""
    off = found.parts[(found.parts["kind"] == "circuit") & ~found.parts["kept"]]
    means = found.ablated.groupby(["part", "task"], sort=False)["logit_diff"].mean().unstack()
    means = means[list(dict.fromkeys(found.ablated["task"]))]
    if off.empty:
        return ["No task's circuit can be switched off here."]
    table = pd.DataFrame({"switched off: the circuit of": [TASKS[t].title for t in off["task"]]})
    for task in means:
        left = means.loc[off["part"], task]
        table[TASKS[task].title] = [f"{v:+z.2f}" for v in left]
    whole = ", ".join(f"{TASKS[t].title.lower()} {v:+z.2f}" for t, v in means.loc["intact"].items())
    own = {row.task: means.loc[row.part, row.task] for row in off.itertuples()}
    harder = [
        (row.task, task)
        for row in off.itertuples()
        for task in means
        if task != row.task and task in own and means.loc[row.part, task] <= own[task]
    ]
    pairs = len(own) * (len(own) - 1)
    return [
        "The logit difference, mean over the prompts that can be chosen. With nothing switched "
        f"off: {whole}. Another task's circuit harms a task as much as its own does, or more, in "
        f"{len(harder)} of {pairs} cases.",
        table,
    ]


@answered("swaps", "ablated")
def swap(found: Explore) -> Sequence[Part]:
    """From which block on the wanted answer is likelier than the prompt's own."""
    rows = found.swaps[found.swaps["source_prompt"] != found.swaps["base_prompt"]]
    if rows.empty:
        return ["Prompts at different places cannot be chosen here, so no answer can change."]
    same = rows["source"] == rows["base"]
    told, lines = {"the same task": rows[same], "another task": rows[~same]}, []
    for kind, part in told.items():
        keys = ["source", "source_prompt", "base", "base_prompt"]
        first = [turn(pair) for _, pair in part.groupby(keys)]
        turned = sorted(block for block in first if block is not None)
        lines.append(
            {
                "what is put in comes from": kind,
                "pairs of prompts": str(len(first)),
                "where the answer changes": str(len(turned)),
                "before which block": _span(turned),
            }
        )
    return [
        "The answer changes where the wanted one is likelier than the prompt's own from some block "
        "on, to the last that was tried. Only prompts at different places are counted; between the "
        "same places there is nothing to change.",
        pd.DataFrame(lines),
    ]


def turn(pair: pd.DataFrame) -> int | None:
    """The first layer from which on the wanted answer stays likelier than the own one."""
    pair = pair.sort_values("layer")
    ahead = (pair["wanted"] > pair["own"]).to_numpy()
    if not ahead[-1]:
        return None
    behind = np.flatnonzero(~ahead)
    return int(pair["layer"].iloc[behind[-1] + 1 if len(behind) else 0])


def _span(blocks: Sequence[int]) -> str:
    if not blocks:
        return "–"
    return str(blocks[0]) if blocks[0] == blocks[-1] else f"{blocks[0]} to {blocks[-1]}"


@answered("attention")
def attention(found: Explore) -> Sequence[Part]:
    """Which of the shared heads look most at the last member from the last token."""
    tasks = list(found.read)
    last = {
        row.task: row.last_id for row in found.prompts[found.prompts["prompt"] == 0].itertuples()
    }
    at = {}
    for place, task in enumerate(tasks):
        tokens = found.read[task][0]
        if last.get(task) in tokens:
            spot = len(tokens) - 1 - tokens[::-1].index(last[task])
            seen = found.attention[place, 0, :, len(tokens) - 1, : len(tokens)]  # [head, key]
            at[task] = seen.argmax(1) == spot, seen[:, spot]
    shared = [i for i, held in enumerate(found.heads["tasks"]) if len(held.split()) == len(tasks)]
    if not at or not shared:
        return ["No shared head's attention to a last member is shown here."]
    looks = np.array([at[task][0][shared] for task in at])  # [task, head]
    names = found.heads["head"].iloc[shared].to_numpy()
    table = pd.DataFrame({"head": names})
    for task in at:
        table[TASKS[task].title] = [f"{v:.0%}" for v in at[task][1][shared]]
    return [
        "Shared heads that, from the last token, look at the last member more than at any other "
        f"token in every task: {listed(names[looks.all(0)])}. In some of the tasks only: "
        f"{listed(names[looks.any(0) & ~looks.all(0)])}.",
        table,
        "The table says how much of the attention the last member gets, in a prompt of each task.",
    ]
