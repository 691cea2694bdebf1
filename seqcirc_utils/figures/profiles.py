"""What the chapters found of one component, in short sentences for the map's panel."""

from typing import Any

import pandas as pd

from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.components import Component
from seqcirc_utils.typography import minus


def facts(found: CrossTask) -> dict[str, dict[Component, list[str]]]:
    """Task to component to sentences, for all that any circuit holds."""
    rows = found.profiles
    held = set(rows.loc[rows["inside"], "component"])
    told: dict[str, dict[Component, list[str]]] = {}
    for row in rows[rows["component"].isin(held)].itertuples():
        told.setdefault(row.task, {})[Component.parse(row.component)] = _sentences(row)
    return told


def _sentences(row: Any) -> list[str]:
    said = [f"found by {row.found} of {row.searches} searches"]
    if pd.notna(row.effect):
        low, high = _percent(row.low), _percent(row.high)
        said.append(f"ablated alone: {_percent(row.effect)} [{low}, {high}] of the lead")
    if pd.notna(row.to_members):
        said.append(
            f"attention: {row.to_members:.0%} from the end to members, "
            f"{row.among_members:.0%} from members to earlier ones"
        )
    if pd.notna(row.answer):
        said.append(f"writes: answer {_signed(row.answer)}, last member {_signed(row.last)} logits")
    if pd.notna(row.lens_answer):
        said.append(
            f"adds by the logit lens: answer {_percent(row.lens_answer)}, "
            f"last member {_percent(row.lens_last)}"
        )
    if row.reads:
        said.append(f"reads {', '.join(row.reads.split())}")
    if row.read_by:
        said.append(f"read by {', '.join(row.read_by.split())}")
    return said


def _signed(value: float) -> str:
    return minus(f"{value:+z.2f}")


def _percent(share: float) -> str:
    return minus(f"{100 * share:+z.1f}%")
