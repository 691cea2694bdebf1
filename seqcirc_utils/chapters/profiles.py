"""All that the chapters found of each component, side by side."""

import pandas as pd

from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.findings import each
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.components import Edge

COLUMNS = (
    {"task": str, "component": str, "inside": bool}
    | each(float, "effect", "low", "high")
    | each(int, "found", "searches")
    | each(float, "to_members", "among_members", "answer", "last", "lens_answer", "lens_last")
    | each(str, "reads", "read_by")
)
"""A component of a task: whether it is in the circuit; what mean ablation changes, as a share of
the logit difference, with the 95% interval; how many of the task's searches found it, of how many;
the attention it pays from the end to members, and from members to earlier ones; what it adds to the
logits of answer and last member, or an MLP to their lens probabilities; the circuit's edges into it
and out of it, with spaces between. NaN, or empty, where a chapter could not tell."""

_OF_ROLES = {
    "end_to_members": "to_members",
    "members_to_members": "among_members",
    "direct_next": "answer",
    "direct_last": "last",
    "lens_next": "lens_answer",
    "lens_last": "lens_last",
}


def profiles(
    task: str, patching: Patching, found: CircuitDiscovery, roles: ComponentRoles | None
) -> pd.DataFrame:
    """Everything about a task's components.

    Args:
        task: The task.
        patching: Its effects of ablation.
        found: Its searches and edges.
        roles: What its components read and write; ``None`` where that is missing.

    Returns:
        A row per component, with :data:`COLUMNS`.
    """
    effects = patching.effects.set_index("component")
    searches = list(found.by_search.values())
    counts = pd.Series([str(c) for circuit in searches for c in circuit]).value_counts()
    inside = set(map(str, found.circuit.components))
    edges = [Edge.parse(name) for name in found.circuit.edges]
    table = pd.DataFrame(
        {
            "task": task,
            "component": effects.index,
            "inside": effects.index.isin(inside),
            "effect": effects["ablation"].to_numpy(),
            "low": effects["ablation_low"].to_numpy(),
            "high": effects["ablation_high"].to_numpy(),
            "found": counts.reindex(effects.index, fill_value=0).to_numpy(),
            "searches": len(searches),
        }
    )
    names = table["component"]
    for column, name in _OF_ROLES.items():
        known = None if roles is None else roles.components.set_index("component")[column]
        table[name] = float("nan") if known is None else known.reindex(names).to_numpy(float)
    table["reads"] = [" ".join(_senders(edges, name)) for name in names]
    table["read_by"] = [" ".join(_readers(edges, name)) for name in names]
    return table[[*COLUMNS]]


def _senders(edges: list[Edge], name: str) -> list[str]:
    """What a component reads, in the model's order, a sender of several inputs once."""
    return list(map(str, sorted({e.sender for e in edges if str(e.receiver) == name})))


def _readers(edges: list[Edge], name: str) -> list[str]:
    """What reads a component, in the model's order, the logits last."""
    readers = {e.receiver for e in edges if str(e.sender) == name}
    components = sorted(reader for reader in readers if reader is not None)
    return [*map(str, components), *(["logits"] if None in readers else [])]
