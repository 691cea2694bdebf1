"""What a reader tries by hand: page elements with one JSON of all numbers behind them.

The elements stand in ``explore*.html``, ``.css`` and ``.js`` beside this module, with ``$name``
where they are filled in. They ask no server for anything and need no library.
"""

import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from seqcirc_utils.chapters.explore import SHARES, TOKENS, Explore
from seqcirc_utils.components import Component
from seqcirc_utils.figures.common import needs
from seqcirc_utils.prompts.sequences import TASKS


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").rstrip()


_DATA = Template(
    '<style>\n$style\n</style>\n<script type="application/json" id="explore-data">$data</script>\n'
    "<script>\n$script\n</script>"
)
_PARTS = Template(_file("explore_parts.html"))
_SWAP = Template(_file("explore_swap.html"))
_ATTENTION = Template(_file("explore_attention.html"))


def title(task: str) -> str:
    """What a task is called within a sentence."""
    return TASKS[task].title.lower()


def data(found: Explore) -> HTML:
    """All numbers of the page, once, with what its elements share."""
    ids = {token: place for place, token in enumerate(found.tokens)}
    document = {
        "tokens": list(found.tokens.values()),
        "prompts": _prompts(found, ids),
        "parts": [[row.part, *_named(row)] for row in found.parts.itertuples()],
        "ablated": _ablated(found, ids),
        "swaps": _swaps(found, ids),
        "attention": _attention(found, ids),
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    # "<" never appears raw, so that nothing in the data can end the script element.
    return HTML(
        _DATA.substitute(
            style=_file("explore.css"),
            script=_file("explore.js"),
            data=text.replace("<", "\\u003c"),
        )
    )


def _prompts(found: Explore, ids: dict[str, int]) -> list[list[Any]]:
    """Name, task, text, and the places of the answer's and the last member's tokens."""
    return [
        [f"{row.task}.{row.prompt}", TASKS[row.task].title, row.text]
        + [ids[str(row.answer_id)], ids[str(row.last_id)]]
        for row in found.prompts.itertuples()
    ]


def answers(rows: pd.DataFrame, ids: dict[str, int]) -> list[list[Any]]:
    """For each row the places of its tokens, and their probabilities."""
    tokens = [[ids[str(i)] for i in row] for row in rows[TOKENS].to_numpy().tolist()]
    shares = [[round(p, 4) for p in row] for row in rows[SHARES].to_numpy().tolist()]
    return [list(pair) for pair in zip(tokens, shares, strict=True)]


def _ablated(found: Explore, ids: dict[str, int]) -> dict[str, list[list[Any]]]:
    """Prompt to logit difference, tokens and probabilities, part by part."""
    order = list(found.parts["part"])
    told = {}
    for (task, prompt), rows in found.ablated.groupby(["task", "prompt"], sort=False):
        rows = rows.set_index("part").loc[order]
        differences = rows["logit_diff"].round(3).tolist()
        said = answers(rows, ids)
        told[f"{task}.{prompt}"] = [[d, *s] for d, s in zip(differences, said, strict=True)]
    return told


def _swaps(found: Explore, ids: dict[str, int]) -> dict[str, Any]:
    """The layers; and source and base prompt to the wanted token and the answers by layer.

    An answer is tokens, probabilities, and those of the wanted, own and source's tokens. The page
    starts with prompts of two tasks at different places, at the layer where the wanted answer of
    other tasks is likeliest.
    """
    rows, pairs = found.swaps, {}
    if rows.empty:
        return {}
    for key, part in rows.groupby(["source", "source_prompt", "base", "base_prompt"], sort=False):
        part = part.sort_values("layer")
        three = part[["wanted", "own", "token"]].round(4).to_numpy().tolist()
        told = [[*a, t] for a, t in zip(answers(part, ids), three, strict=True)]
        name = "{}.{} {}.{}".format(*key)
        pairs[name] = [ids[str(part["wanted_id"].iloc[0])], told]
    across = rows[rows["source"] != rows["base"]]
    across = rows if across.empty else across
    means = across.groupby("layer")["wanted"].mean()
    apart = across.merge(
        found.prompts, left_on=["base", "base_prompt"], right_on=["task", "prompt"]
    )
    apart = apart[apart["wanted_id"] != apart["answer_id"]]
    first = (across if apart.empty else apart).iloc[0]
    return {
        "layers": list(means.index),
        "start": list(means.index).index(means.idxmax()),
        "first": [f"{first[end]}.{first[f'{end}_prompt']}" for end in ("source", "base")],
        "pairs": pairs,
    }


def _attention(found: Explore, ids: dict[str, int]) -> dict[str, Any]:
    """Heads; what is read; and by task and prompt each head's weights, in percent.

    Weights are those of each token on itself and the tokens before it, one token after another.
    """
    reads, weights = [], {}
    for place, (task, both) in enumerate(found.read.items()):
        reads.append([task, TASKS[task].title, [[ids[str(i)] for i in row] for row in both]])
        weights[task] = [
            [_triangle(pattern, len(row)) for pattern in patterns]
            for patterns, row in zip(found.attention[place], both, strict=True)
        ]
    tasks = found.prompts["task"].nunique()
    heads = [
        [row.head, "in all circuits" if len(held) == tasks else f"in {', '.join(map(title, held))}"]
        for row in found.heads.itertuples()
        for held in [row.tasks.split()]
    ]
    return {"heads": heads, "reads": reads, "weights": weights}


def _triangle(pattern: np.ndarray, n: int) -> list[int]:
    """A pattern ``[query, key]`` below and on its diagonal, in whole percent, row by row."""
    return np.rint(100 * pattern[:n, :n][np.tril_indices(n)]).astype(int).tolist()


def _named(row: Any) -> list[str]:
    """A part's group, its name on the button, and how a sentence about it begins."""
    if row.kind == "intact":
        return ["", "nothing", "With nothing switched off"]
    if row.kind == "component":
        component = Component.parse(row.part)
        head = component.head is not None
        name = f"head {component}" if head else f"MLP {component.layer}"
        group = "One shared head" if head else "One shared MLP"
        return [group, name.removeprefix("head "), f"Without {name}"]
    core = row.kind == "core"
    name = "the shared core" if core else f"the circuit of {title(row.task)}"
    short = "shared core" if core else title(row.task)
    if row.kept:
        return ["All but one circuit", short, f"With {name} alone"]
    return ["One whole circuit", short, f"Without {name}"]


@needs("ablated")
def parts(found: Explore) -> HTML | Markdown:
    """Pick a prompt, switch a part off, read what the model says."""
    shared = int((found.parts["kind"] == "component").sum())
    told = f"{shared} components are in the circuits of all {found.prompts['task'].nunique()} tasks"
    return HTML(
        _PARTS.substitute(
            title=found.title, n_means=found.n_means, told=told, script=_file("explore_parts.js")
        )
    )


@needs("swaps", "ablated")
def swap(found: Explore) -> HTML | Markdown:
    """Put one prompt's place in its sequence into another; read what the model says."""
    return HTML(
        _SWAP.substitute(
            title=found.title,
            n_means=found.n_swap_means,
            n_layers=found.n_layers,
            most=found.swaps["layer"].nunique() - 1,
            script=_file("explore_swap.js"),
        )
    )


@needs("attention")
def attention(found: Explore) -> HTML | Markdown:
    """Point at a token, and see where a head looks from there."""
    return HTML(
        _ATTENTION.substitute(
            title=found.title,
            shown=len(found.heads),
            all=found.n_heads,
            script=_file("explore_attention.js"),
        )
    )


def left_out(found: Explore) -> Markdown | None:
    """Which tasks are not here, and why."""
    if not found.left_out:
        return None
    return Markdown("Not here: " + " ".join(f"{t}: {why}" for t, why in found.left_out.items()))
