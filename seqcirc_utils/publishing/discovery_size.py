"""On how many prompts to search: the table of `benchmarks/discovery_size.py`, and its figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqcirc_utils import store

if TYPE_CHECKING:
    import pandas as pd

DATA = Path("benchmarks", "discovery_size.json")
FIGURE = DATA.with_suffix(".svg")


def jaccard(first: Sequence[str], second: Sequence[str]) -> float:
    """The components that two circuits share, of all that either holds; empty ones are alike."""
    union = {*first, *second}
    return len({*first} & {*second}) / len(union) if union else 1.0


def by_size(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Searches by task and number of prompts.

    Args:
        rows: As the benchmark writes them.

    Returns:
        A row per ``task`` and ``prompts``, means over the parts: ``components``, ``kept`` on unseen
        prompts, ``trials``, ``cpu_seconds``; ``parts``: the Jaccard index of circuits of two parts,
        which share no prompt; ``largest``: with the same part's circuit on the most prompts.
    """
    import pandas as pd  # slow, and commands that make no page do without

    most = max(row["prompts"] for row in rows)
    circuit = {(row["task"], row["prompts"], row["part"]): row["circuit"] for row in rows}
    found = pd.DataFrame(rows).rename(columns={"mean": "kept"})
    found["components"] = found["circuit"].map(len)
    found["largest"] = [
        jaccard(row["circuit"], circuit[row["task"], most, row["part"]]) for row in rows
    ]
    found["parts"] = [
        jaccard(circuit[row["task"], row["prompts"], 0], circuit[row["task"], row["prompts"], 1])
        for row in rows
    ]
    columns = ["components", "kept", "trials", "cpu_seconds", "parts", "largest"]
    return found.groupby(["task", "prompts"], sort=False)[columns].mean().reset_index()


def discovery_size() -> str:
    """Return the table and the figure as Markdown."""
    if not (store.ROOT / DATA).is_file():
        return f"Nothing was measured: `{DATA.with_suffix('.py')}` does.\n"
    found = store.read_json(store.ROOT / DATA)
    table = by_size(found["rows"])
    tasks, most = table["task"].nunique(), table["prompts"].max()
    mean = table.drop(columns="task").groupby("prompts").mean()
    lines = [
        f"Means over {tasks} tasks and two searches each, that share no prompt. What a circuit "
        f"keeps is measured on {found['judged']} further prompts; {found['threshold']:.0%} is "
        "asked of it on those that it is searched on.",
        "",
        "| prompts | components | kept, unseen prompts | Jaccard, no prompt in common "
        f"| Jaccard with the circuit on {most} | trials | CPU s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {prompts} | {row.components:.0f} | {row.kept:.1%} | {row.parts:.2f} "
        f"| {row.largest:.2f} | {row.trials:.0f} | {row.cpu_seconds:.0f} |"
        for prompts, row in zip(mean.index, mean.itertuples(index=False), strict=True)
    ]
    if (store.ROOT / FIGURE).is_file():
        lines += [
            "",
            f":::{{figure}} runs/{FIGURE.name}",
            ":alt: Curves by the number of discovery prompts in two panels, by task.",
            "What circuits keep on prompts that no search has seen, and how far two circuits of "
            "one task agree, by the number of discovery prompts.",
            ":::",
        ]
    return "\n".join(lines) + "\n"
