"""Verdicts by metric: each rule on tables made by hand, on either side of its limit."""

from types import SimpleNamespace

import pandas as pd
import pytest

from seqcirc_utils.chapters.metrics import DIFFERENCE, KL, LOG_PROB, METRICS
from seqcirc_utils.figures import metrics as figures
from seqcirc_utils.paper.by_metric import by_metric
from seqcirc_utils.paper.effects import CARRIED, CONTRADICTED, SUPPORTED, UNDECIDED
from seqcirc_utils.paper.evidence import NOT_TESTED

TASKS = ["digits", "number_words", "months"]


def bounds(mean, half=0.02):
    return {"mean": mean, "low": mean - half, "high": mean + half}


@pytest.fixture
def found():
    """What chapter 15 would have found: by every metric all claims carry over, with room."""
    judged = [
        {"task": t, "circuit": c, "judge": j} | bounds(0.9 if c == j else 0.1)
        for t in TASKS
        for c in METRICS
        for j in METRICS
    ]
    shared = [
        {"metric": m, "shared": 12, "layer_expected": 4.0, "layer_low": 2, "layer_high": 7}
        for m in METRICS
    ]
    does = {("digits", "months"): 0.8, ("number_words", "months"): 0.7}
    does |= {("number_words", "digits"): 0.9, ("digits", "number_words"): 0.5}
    does |= {("months", "digits"): 0.3, ("months", "number_words"): 0.2}
    transfer = [
        {"circuit": c, "task": t, "metric": m} | bounds(mean)
        for (c, t), mean in does.items()
        for m in METRICS
    ]
    tables = {"judged": judged, "shared": shared, "transfer": transfer}
    return SimpleNamespace(
        n_kept=60, n_held=16, **{name: pd.DataFrame(rows) for name, rows in tables.items()}
    )


def verdicts(found, metric=KL):
    table = by_metric(found)
    return table[table["metric"] == metric].set_index("claim")["verdict"].to_dict()


def test_limits_are_those_of_the_claims(found):
    table = by_metric(found)
    assert set(table["claim"]) <= set(CARRIED) and len(table) == 4 * len(METRICS)
    assert set(table["verdict"]) == {SUPPORTED}
    told = table.set_index(["claim", "metric"])
    assert "at least 70% of each task" in told.loc[("C1", KL), "statement"]
    assert told.loc[("C1", KL), "effects"].startswith("digits, % kept: 90 [88, 92] ≥ 70; ")
    # Of 12 shared, chance gives 4, in the middle 95% of draws 2 to 7.
    assert told.loc[("C2", KL), "effects"] == "shared beyond chance: 8 [5, 10] ≥ 1"
    # Errors of two tasks' prompts are independent: 2 and 2 points make 2.8.
    shown = "digits on months less months on digits: 50 [47, 53] ≥ 10"
    assert told.loc[("C7", KL), "effects"].startswith(shown)


@pytest.mark.parametrize(
    ("table", "wanted", "column", "claim"),
    [
        ("judged", {"task": "months", "circuit": KL, "judge": KL}, "mean", "C1"),
        ("transfer", {"circuit": "number_words", "task": "months", "metric": KL}, "mean", "C7"),
        ("transfer", {"circuit": "number_words", "task": "digits", "metric": KL}, "mean", "C8"),
        ("shared", {"metric": KL}, "shared", "C2"),
    ],
)
def test_each_claim_can_come_out_each_way(found, table, wanted, column, claim):
    frame = getattr(found, table)
    row = (frame[list(wanted)] == pd.Series(wanted)).all(axis=1)
    assert row.sum() == 1
    if column == "mean":
        frame.loc[row, "low"] = -1.0
        assert verdicts(found)[claim] == UNDECIDED
        frame.loc[row, ["mean", "low", "high"]] = [0.01, 0.0, 0.02]
    else:
        frame.loc[row, column] = 7
        assert verdicts(found)[claim] == UNDECIDED
        frame.loc[row, column] = 2
    assert verdicts(found)[claim] == CONTRADICTED
    assert set(verdicts(found, LOG_PROB).values()) == {SUPPORTED}
    told = figures.verdicts_told(found).data
    assert told.startswith("Of 4 verdicts, 3 are the same by every metric (")
    assert f"- {claim}: **supported** by {DIFFERENCE}, " in told
    assert told.endswith(f"; **contradicted** by {KL}.")


def test_what_was_not_measured_is_not_judged(found):
    found.transfer = found.transfer[found.transfer["circuit"] != "months"]
    found.shared = found.shared[found.shared["metric"] != KL]
    assert verdicts(found) == dict(C1=SUPPORTED, C2=NOT_TESTED, C7=NOT_TESTED, C8=SUPPORTED)
    table = by_metric(found).set_index(["claim", "metric"])
    assert table.loc[("C2", KL), "effects"] == f"nothing was measured of {KL}."
    page = figures.verdict_table(found).data
    assert page.count("<tr>") == 5 and "number words on digits less" in page
    assert figures.verdicts_told(found).data.startswith("Of 2 verdicts, 2 are the same")
    found.transfer, found.judged = found.transfer[:0], found.judged[found.judged["judge"] != KL]
    assert set(verdicts(found).values()) == {NOT_TESTED}
    assert figures.verdicts_told(found).data == "No claim can be judged by every metric here."
