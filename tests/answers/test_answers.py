"""Answers to what the chapters say to try: right on findings whose answer is known, and folded."""

import base64
import re
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from seqcirc_utils import store
from seqcirc_utils.answers import (
    across_models,
    circuit_discovery,
    claims,
    component_roles,
    cross_task,
    explore,
    fold,
    generalisation,
    ground_truth,
    interchange,
    logit_attribution,
    methods,
    metrics,
    patching,
    prediction_and_editing,
    specificity,
    task_construction,
)
from seqcirc_utils.circuits.circuit import Circuit
from seqcirc_utils.components import Component
from seqcirc_utils.figures.common import needs
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.workflow import stages
from seqcirc_utils.workflow.parameters import check, declared


def found(**fields):
    return SimpleNamespace(**{"missing": {}} | fields)


def read(answer):
    """An answer's paragraphs, the rows of its tables, and its pictures, from behind the fold."""
    page = BeautifulSoup(answer.data, "html.parser")
    (only,) = page.find_all(True, recursive=False)
    assert only.name == "details" and only["class"] == ["answer"] and not only.has_attr("open")
    assert [s.get_text() for s in only.find_all("summary")] == ["Show the answer"]
    assert only.find(True).name == "summary"
    rows = [[c.get_text() for c in row.find_all(["th", "td"])] for row in only.find_all("tr")]
    pictures = only.find_all("img")
    for picture in pictures:
        kind, text = picture["src"].split(",")
        assert kind == "data:image/svg+xml;base64" and b"<svg" in base64.b64decode(text)
        assert len(picture["alt"]) > 15
    return [p.get_text() for p in only.find_all("p") if not p.find("img")], rows, pictures


def test_a_fold_shows_text_as_text_and_the_same_figure_as_the_same_bytes():
    from seqcirc_utils.figures import style

    table = pd.DataFrame({"a": ["x<y"], "b": ["1"]})
    assert read(fold.folded(["1 < 2 & <b>", table]))[:2] == (
        ["1 < 2 & <b>"],
        [["a", "b"], ["x<y", "1"]],
    )
    style.use_style()
    curve = pd.DataFrame({"shared": [1, 2], "expected": [0, 1.0]}, index=[0.5, 1.0])
    one, two = (
        fold.folded([fold.Picture(cross_task._curve(curve), "two curves, by hand")])
        for _ in range(2)
    )
    assert one.data == two.data and len(read(one)[2]) == 1


@pytest.mark.parametrize(
    ("answer", "section"),
    [
        (logit_attribution.answer, "direct"),
        (component_roles.answer, "ov"),
        (component_roles.answer, "direct"),
        (cross_task.answer, "circuits"),
        (generalisation.answer, "effects"),
        (prediction_and_editing.answer, "prediction"),
        (explore.parts, "ablated"),
        (explore.swap, "swaps"),
        (explore.swap, "ablated"),
        (explore.attention, "attention"),
    ],
)
def test_a_missing_section_is_told_behind_the_fold(answer, section):
    paragraphs, rows, pictures = read(answer(found(missing={section: "this model has none."})))
    assert paragraphs == ["Not here: this model has none."] and not rows and not pictures
    # As the figures of the chapter say it.
    told = needs(section)(lambda _: None)(found(missing={section: "this model has none."}))
    assert told.data == paragraphs[0]


@pytest.mark.parametrize("least", [0.8, 0.9])
def test_the_uneven_writers_by_trying_every_circuit(least):
    from seqcirc_utils.ablation.evaluator import Evaluator
    from seqcirc_utils.chapters.setting import Setting
    from seqcirc_utils.planted.circuits import smallest

    at = {"templates": ["born"], "n_prompts": 4, "n_means": 8, "seed": 0}
    own = Setting(at, model=PLANTED["uneven"].build("months"))
    evaluator = Evaluator(own.model, own.sets("months").discovery, own.means("months"))
    parts = sorted(PLANTED["uneven"].circuit)
    left = evaluator.replaced([[c] for c in parts]).logit_diff.mean(1)
    shares = (left / evaluator.intact.logit_diff.mean()).tolist()
    rows = [["uneven", "months", str(c), x] for c, x in zip(parts, shares, strict=True)]
    alone = pd.DataFrame(rows, columns=["planted", "task", "component", "share"])
    costs = ground_truth._costs(found(alone=alone))
    right, order = ground_truth.right(costs, least)
    path = "0.2 mlp0 1.2 mlp1"
    assert {frozenset(map(Component.parse, f"{path} {w}".split())) for w in right} == set(
        smallest(evaluator, parts, least)
    )
    assert order == (least == 0.8)
    _, rows, _ = read(ground_truth.answer(found(alone=alone, threshold=0.8)))
    assert [row[0] for row in rows] == ["threshold", "0.8", "0.9"]
    assert rows[1][2:] == ["2.0", "yes"] and rows[2][3].startswith("no")
    assert set(rows[2][2].split(" or ")) == {"2.0 2.1", "2.0 2.2"}
    assert len(read(ground_truth.answer(found(alone=alone, threshold=0.9)))[1]) == 2


def template(name, mean, half):
    bounds = {"accuracy": 1.0, "accuracy_low": 0.4, "accuracy_high": 1.0, "n": 4}
    ends = {"logit_diff_low": mean - half, "logit_diff_high": mean + half}
    return {"template": name, "logit_diff": mean} | ends | bounds


def test_the_hardest_sentence_is_told_apart_only_where_intervals_are():
    rows = [template("born", 2, 0.5), template("lost", 3, 0.5), template("done", 1, 0.4)]
    text, table, _ = read(task_construction.answer(found(by_template=rows)))
    assert "largest in “lost” (3.00 logits)" in text[0] and "smallest in “done” (1.00)" in text[0]
    assert "the sentence matters" in text[0]
    assert [row[0] for row in table] == ["sentence", "lost", "born", "done"]
    assert table[3][1:] == ["1.00 [0.60, 1.40]", "100% [40%, 100%]", "4"]
    rows[2] = template("done", 1, 1.6)
    assert (
        "do not tell the two apart" in read(task_construction.answer(found(by_template=rows)))[0][0]
    )
    for few in ([], rows[:1]):
        assert "nothing to compare" in read(task_construction.answer(found(by_template=few)))[0][0]


def test_the_parts_that_lead_in_every_prompt():
    direct = np.array([[9, 9], [-8, -8], [7, 7], [6, 6], [5.5, 0.1], [0.1, 5], [0, 0]])
    names = ["0.0", "mlp0", "1.0", "1.1", "2.0", "2.1", "bias"]
    contributions = pd.DataFrame({"component": names, "effect": direct.mean(1)})
    text, table, _ = read(
        logit_attribution.answer(found(direct=direct, contributions=contributions))
    )
    assert "each of the 2 prompts too: 0.0, mlp0, 1.0, 1.1." in text[0]
    assert [row[0] for row in table[1:]] == ["0.0", "mlp0", "1.0", "1.1", "2.0"]
    assert [row[2] for row in table[1:]] == ["2 of 2"] * 4 + ["1 of 2"]


def test_the_next_strongest_components_and_where():
    names = ["0.0", "0.1", "mlp0", "1.0", "1.1", "mlp1"]
    effects = pd.DataFrame({"component": names, "ablation": [-0.9, 0.1, -0.2, 0.4, 0, -0.5]})
    effects["patching"] = [0.9, 0, 0.05, 0.3, 0, 0.1]
    positions = pd.DataFrame({"component": names, "member 1": [0, 0, 0.3, 0.1, 0, 0.0]})
    positions["end"] = [0.5, 0, -0.1, -0.2, 0, 0.6]
    exact = positions.set_index("component").loc[["0.0", "1.0"]].reset_index()
    at = {"effects": effects, "positions": positions, "position_spearman": 0.5}
    text, table, _ = read(patching.answer(found(exact=exact, **at)))
    assert "at the end of the prompt: 1 of 2." in text[0] and "0.50" in text[1]
    assert table[1:] == [
        ["mlp1", "−50%", "+10%", "end", "+60%"],
        ["mlp0", "−20%", "+5%", "member 1", "+30%"],
    ]
    text, table, _ = read(patching.answer(found(exact=positions, **at)))
    assert "every component already" in text[0] and not table


def test_the_circuit_at_another_threshold_is_on_the_way():
    rows = [["ranked search", "0.0 0.1", 0.95, True], ["ranked search", "1.0", 0.7, False]]
    rows += [["ranked search", "1.1 2.0", 0.91, True], ["ranked search", "mlp1 2.1", 0.82, True]]
    rows += [["published sweep", "1.0", 0.99, True]]
    steps = pd.DataFrame(rows, columns=["search", "component", "score", "removed"])
    names = [f"{layer}.{head}" for layer in range(3) for head in range(2)]
    names += [f"mlp{layer}" for layer in range(3)]
    circuit = Circuit(
        **{"model": "m", "task": "months", "method": "ranked search", "ablation": "mean"},
        **{"threshold": 0.8, "n_prompts": 4, "seed": 0, "heads": [[1, 0]], "mlps": [0, 2]},
        faithfulness={"mean": 0.8, "low": 0.7, "high": 0.9},
    )
    components = pd.DataFrame({"component": ["mlp0", "1.0", "mlp2"], "inclusion": [1, 1, 0.5]})
    text, _, pictures = read(
        circuit_discovery.answer(
            found(
                steps=steps,
                estimates=pd.DataFrame({"component": names}),
                circuit=circuit,
                components=components,
            )
        )
    )
    assert "keeps 90%: 5 of 9 components, where 80% is kept by 3." in text[0]
    assert text[0].endswith("beside those of the circuit: 2.1.")
    assert text[1].endswith("found again: 1.0.") and len(pictures) == 1


def test_roles_that_survive_are_counted_by_how_sure_they_were(monkeypatch):
    heads = pd.DataFrame({"head": [0, 1, 2, 3, pd.NA], "confidence": [1, 0.5, 1, 1, 1]})
    heads["role"] = ["copy", "copy", "none", "", "copies last member"]
    strict = pd.Series(["copy", "transport to the end", "none", ""])
    monkeypatch.setattr(component_roles, "roles_at", lambda table, *_: strict)
    text, table, _ = read(component_roles.answer(found(components=heads, spread={})))
    assert "attention of 0.4: 1 of 2." in text[0] and "prompts): 1 of 1." in text[0]
    by_role = {row[0]: row[1:] for row in table}
    assert by_role["copy"] == ["2", "1", "1"]
    assert by_role["transport to the end"] == ["0", "0", "1"]


def crossed(**circuits):
    importance = pd.DataFrame({"component": [f"{i}.0" for i in range(8)]})
    importance["Digits"] = [-0.9, -0.8, -0.3, -0.2, 0, 0, 0, 0]
    importance["Months"] = [-0.9, -0.1, -0.8, -0.2, 0, 0, 0, 0]
    sets = {task: {Component.parse(n) for n in names.split()} for task, names in circuits.items()}
    return found(importance=importance, circuits=sets, shared={"heads": {"total": 8}})


def test_smaller_circuits_share_their_leading_heads():
    both = crossed(digits="0.0 1.0 2.0 3.0 mlp0", months="0.0 1.0 2.0 3.0 mlp1")
    text, _, pictures = read(cross_task.answer(both))
    # Two of eight in both: 2 × 2 / 8 by chance.
    assert "the whole circuits share: 4." in text[0] and len(pictures) == 1
    assert "task most: 1 (0.0), where random sets of these sizes would share 0.5." in text[0]
    curve = cross_task.smaller(both)
    assert curve.loc[1.0, "expected"] == pytest.approx(2)
    assert "nothing to share" in read(cross_task.answer(crossed(digits="0.0")))[0][0]
    text, _, _ = read(cross_task.answer(crossed(digits="mlp0", months="0.0 1.0")))
    assert "share: 0." in text[0] and "0 (none)" in text[0]


def test_zero_and_mean_ablation_side_by_side():
    rows = [["p", "mean", "core", 5, 0.5], ["p", "zero", "core", 5, 0.25]]
    rows += [["p", "mean", "key", 3, 0.5], ["p", "zero", "key", 3, 0.5]]
    rows += [["p", "mean", "head 1.0", 1, 1.0], ["p", "zero", "head 1.0", 1, 0.0]]
    effects = pd.DataFrame(rows, columns=["probe", "kind", "set", "n_heads", "retained"])
    probes = pd.DataFrame({"probe": ["p"], "title": ["numbers, +2"]})
    text, table, _ = read(generalisation.answer(found(effects=effects, probes=probes)))
    assert "in 1 of 2 cases" in text[0] and "as much in 1." in text[0]
    assert table[1] == ["numbers, +2", "50%", "38%"]
    for left in (effects[effects["kind"] == "mean"], effects[effects["n_heads"] == 1]):
        assert (
            "nothing to tell"
            in read(generalisation.answer(found(effects=left, probes=probes)))[0][0]
        )


def test_a_circuit_is_tried_where_the_model_is_sure():
    points = pd.DataFrame({"whole": [0.1, -3.0, -0.2, 2.0], "circuit": [-1.0, -1.0, -1.0, 1.0]})
    assert prediction_and_editing.agreeing(points) == (0.5, 1.0)
    points["task"] = "months"
    text, table, _ = read(prediction_and_editing.answer(found(points=points)))
    assert "in 1 of 1 tasks" in text[0] and table[1] == ["Months", "50%", "100%"]
    lone = found(points=points[:1])
    assert "cannot be halved" in read(prediction_and_editing.answer(lone))[0][0]


def test_verdicts_that_hang_on_a_limit_or_on_prompts():
    rows = [
        ["C1", "supported", "", np.nan],
        ["C2", "supported", "least = 12: undecided", np.nan],
        ["C3", "undecided", "", 4515.0],
        ["C4", "undecided", "most = 5: contradicted", np.nan],
        ["C5", "not testable here", "", np.nan],
        ["C6", "undecided", "", 12.0],
    ]
    verdicts = pd.DataFrame(rows, columns=["claim", "verdict", "flips", "needed"])
    text, table, _ = read(claims.answer(found(verdicts=verdicts)))
    assert "2 of 5 verdicts" in text[0] and [row[0] for row in table] == ["claim", "C2", "C4"]
    assert "decide: C6 with about 12, C3 with about 4,500; no number decides: C4." in text[1]
    text, table, _ = read(claims.answer(found(verdicts=verdicts[:1])))
    assert not table and "decide: none; no number decides: none." in text[1]


def test_the_best_method_for_few_passes():
    rows = [["exact", 300, 2.0, 2.0, 0.9], ["quick", 4, 1.0, 0.5, 0.5], ["fair", 12, 0.9, 0.8, 0.7]]
    rows += [["random", 0, 0.1, 0.1, 0.1]]
    columns = ["method", "passes", "cpr", "mean_cpr", "recall_heads"]
    table = pd.DataFrame(rows, columns=columns)
    text, shown, _ = read(methods.answer(found(methods=table, n_scored=1)))
    assert "quick has the largest area" in text[0] and "of all methods exact has (2.00" in text[0]
    assert "With mean ablation fair comes first (0.80)" in text[0]
    assert [row[0] for row in shown] == ["method", "quick", "fair"]
    text, shown, _ = read(methods.answer(found(methods=table[:1], n_scored=1)))
    assert "12 passes or fewer" in text[0] and not shown
    # With more pairs every method takes as many times the passes: it is a matter of each pair.
    four = table.assign(passes=4 * table["passes"])
    text, again, _ = read(methods.answer(found(methods=four, n_scored=4)))
    assert text[0].startswith("With 48 passes or fewer (12 for each of 4 pairs), quick has")
    assert [row[0] for row in again] == ["method", "quick", "fair"]


def swapped(*shares, source="digits"):
    columns = ["source", "base", "half", "layer", "kind", "n", "wanted"]
    rows = [[source, "months", "judging", 6 * i, "deviation", 4, s] for i, s in enumerate(shares)]
    rows += [["months", "months", "judging", 0, "deviation", 4, 1.0]]
    rows += [["digits", "months", "choosing", 0, "deviation", 4, 1.0]]
    rows += [["digits", "months", "judging", 0, "raw", 4, 1.0]]
    return found(layers=pd.DataFrame(rows, columns=columns))


def test_where_the_wanted_answer_rises():
    text, table, _ = read(interchange.answer(swapped(0, 0.25, 1.0, 0.75)))
    assert "before block 6 to before block 12: 75 of the 100 points" in text[0]
    assert table[1:] == [["0", "0%"], ["6", "25%"], ["12", "100%"], ["18", "75%"]]
    assert "not become more frequent" in read(interchange.answer(swapped(0.5, 0.5)))[0][0]
    assert "nothing rises" in read(interchange.answer(swapped()))[0][0]


def test_tasks_that_are_lost_whole_are_counted():
    tasks = pd.DataFrame({"task": ["digits", "months", "ioi"]})
    tasks["kind"] = ["sequences", "sequences", "outside"]
    losses = {"digits": (0.95, 0.5, 0.2), "months": (1.0, 0.9, -0.1), "ioi": (1, 1, 1)}
    rows = [
        ["circuit", name, task, loss]
        for name, values in losses.items()
        for task, loss in zip(tasks["task"], values, strict=True)
    ] + [["random", "digits", "digits", 1.0]]
    damage = pd.DataFrame(rows, columns=["kind", "set", "task", "mean"])
    at = {"tasks": tasks, "n_ablated": 15, "n_components": 300}
    text, table, _ = read(specificity.answer(found(damage=damage, **at)))
    assert "in 2 of 2 cases, and another task in 1 of 4." in text[0]
    assert table[1:] == [["Digits", "95%", "20% to 50%"], ["Months", "90%", "−10% to 100%"]]
    none = found(damage=damage[:0], **at)
    assert "nothing to tell" in read(specificity.answer(none))[0][0]


def test_claims_on_which_models_agree():
    models = pd.DataFrame({"name": ["a", "b"], "title": ["A", "B"], "here": [True, True]})
    verdicts = pd.DataFrame({"claim": ["C1", "C2", "C3"]})
    verdicts["a"] = ["supported", "supported", "contradicted"]
    verdicts["b"] = ["supported", "contradicted", "undecided"]
    _, table, _ = read(across_models.answer(found(models=models, claims=verdicts)))
    assert table[1] == ["A, B", "2", "1", "C2"]
    alone = found(models=models.assign(here=[True, False]), claims=verdicts[["claim", "a"]])
    text, table, _ = read(across_models.answer(alone))
    assert "A: 2 supported, 1 contradicted, of 3." in text[0] and not table
    nobody = found(models=models.assign(here=False), claims=verdicts[["claim"]])
    assert "None of any model." in read(across_models.answer(nobody))[0][0]


def test_the_head_that_costs_most_by_each_metric():
    rows = [
        ["digits", "mlp0", "m", -2.0],
        ["digits", "1.0", "m", -0.4],
        ["digits", "2.0", "m", 0.1],
        ["digits", "1.0", "k", -0.1],
        ["digits", "2.0", "k", -0.3],
        ["months", "1.0", "m", -0.5],
        ["months", "1.0", "k", -0.6],
    ]
    effects = pd.DataFrame(rows, columns=["task", "component", "metric", "mean"])
    text, table, _ = read(metrics.answer(found(effects=effects)))
    assert "in 1 of 2 tasks (Months)" in text[0]
    assert table == [
        ["task", "by m", "by k"],
        ["Digits", "1.0 (−40%)", "2.0 (−30%)"],
        ["Months", "1.0 (−50%)", "1.0 (−60%)"],
    ]
    assert "nothing to tell" in read(metrics.answer(found(effects=effects[:1])))[0][0]


def test_circuits_that_are_switched_off():
    names = ["intact", "digits-off", "digits-alone", "months-off"]
    parts = pd.DataFrame({"part": names, "kind": ["intact", *["circuit"] * 3]})
    parts["task"], parts["kept"] = ["", "digits", "digits", "months"], [False, False, True, False]
    left = {"intact": (4, 2), "digits-off": (0, 1), "digits-alone": (3, 1), "months-off": (2, 1)}
    rows = [
        [t, p, v]
        for p, both in left.items()
        for t, v in zip(("digits", "months"), both, strict=True)
    ]
    ablated = pd.DataFrame(rows, columns=["task", "part", "logit_diff"])
    text, table, _ = read(explore.parts(found(parts=parts, ablated=ablated)))
    # For months, the circuit of digits is as bad as its own.
    assert "digits +4.00, months +2.00" in text[0] and "in 1 of 2 cases" in text[0]
    assert table[1:] == [["Digits", "+0.00", "+1.00"], ["Months", "+2.00", "+1.00"]]


def test_where_the_answer_of_a_swap_changes():
    def pair(source, s, base, b, wanted):
        keys = {"source": source, "source_prompt": s, "base": base, "base_prompt": b}
        rows = pd.DataFrame({"layer": [0, 5, 10, 15], "wanted": wanted, "own": [0.5] * 4})
        return rows.assign(**keys)

    late, back = pair("d", 0, "d", 1, [0, 0.6, 0.1, 0.9]), pair("d", 0, "m", 1, [0, 0.9, 0.9, 0.1])
    assert explore.turn(late) == 15 and explore.turn(back) is None
    always = pair("d", 1, "m", 0, [0.9] * 4)
    assert explore.turn(always) == 0
    same_place = pair("d", 0, "m", 0, [0.9] * 4)
    table = pd.concat([late, back, always, same_place])
    _, rows, _ = read(explore.swap(found(swaps=table)))
    assert rows[1:] == [["the same task", "1", "1", "15"], ["another task", "2", "1", "0"]]
    assert "no answer can change" in read(explore.swap(found(swaps=same_place)))[0][0]


def test_heads_that_look_at_the_last_member():
    attention = np.zeros((2, 2, 3, 4, 4))
    attention[0, 0, 0, 3, 1], attention[1, 0, 0, 3, 2] = 0.9, 0.8  # in both
    attention[0, 0, 1, 3, 1], attention[1, 0, 1, 3, 0] = 0.7, 0.6  # in one
    attention[:, 0, 2, 3, 1] = 0.9  # of one circuit only
    shown = found(
        read={"digits": [[5, 7, 9, 9], []], "months": [[7, 5, 7, 9], []]},
        prompts=pd.DataFrame(
            {"task": ["digits", "months"], "prompt": 0, "last_id": [7, 7]},
        ),
        heads=pd.DataFrame(
            {"head": ["1.0", "2.0", "3.0"], "tasks": ["digits months"] * 2 + ["digits"]}
        ),
        attention=attention,
    )
    text, table, _ = read(explore.attention(shown))
    assert "in every task: 1.0. In some of the tasks only: 2.0." in text[0]
    assert table[1:] == [["1.0", "90%", "80%"], ["2.0", "70%", "0%"]]
    shown.heads = shown.heads[2:]
    assert "No shared head" in read(explore.attention(shown))[0][0]


ONE_LINE = re.compile(r"(?m)^```bash\n(.*)\n```$")


@pytest.mark.parametrize("stage", stages.STAGES)
def test_every_chapter_ends_with_something_to_try_and_its_answer(stage):
    """The answer's cell follows what is asked, and says nothing but the answer."""
    cells = nbformat.read(stages.notebook(stage), as_version=4).cells
    asked = [i for i, cell in enumerate(cells) if "**Try it.**" in cell.source]
    several = stage == "14_explore"
    assert len(asked) == (3 if several else 1)
    for at in asked:
        text = cells[at].source.partition("**Try it.**")[2]
        assert "?" in text or "Guess" in text
        assert "```" not in text or (len(ONE_LINE.findall(text)) == 1 and text.endswith("```"))
        answer = cells[at + 1]
        assert answer.cell_type == "code" and answer.id.endswith("answer")
        assert answer.metadata["tags"] == ["hide-input", "nbval-ignore-output"]
        module = "seqcirc_utils.answers"
        asks = rf"(from {module}[\w. ]*import [\w ]+\n\n)?\w+(\.\w+)?\(found\)"
        assert re.fullmatch(asks, answer.source)
    commands = [c for at in asked for c in ONE_LINE.findall(cells[at].source)]
    assert len(commands) == 1
    if not several:
        assert all("**Try it.**" not in cell.source for cell in cells[asked[0] + 1 :])


def test_the_command_on_roles_changes_the_rule_that_it_means_to(tmp_path):
    cells = nbformat.read(stages.notebook("05_component_roles"), as_version=4).cells
    ((line,),) = [found for c in cells if (found := ONE_LINE.findall(c.source))]
    change, run = line.split(" && ")
    path = "seqcirc_utils/analyses/roles.py"
    copy = tmp_path / path
    copy.parent.mkdir(parents=True)
    text = (store.ROOT / path).read_text(encoding="utf-8")
    copy.write_text(text, encoding="utf-8")
    assert shlex.split(change)[0] == "perl" and change.endswith(path)
    if not shutil.which("perl"):
        pytest.skip("no perl here")
    subprocess.run(change, shell=True, check=True, cwd=tmp_path)
    old, new = text.splitlines(), copy.read_text(encoding="utf-8").splitlines()
    differ = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert differ == [("ATTENTION = 0.2", f"ATTENTION = {component_roles.TRIED}")]
    command = shlex.split(run)
    assert command[:3] == ["papermill", "notebooks/05_component_roles.ipynb", "out.ipynb"]
    assert command[3:] == ["-p", "results", "results/try"]
    assert declared("05_component_roles")["results"].default != command[5]


def test_the_command_across_models_is_one_of_makes():
    cells = nbformat.read(stages.notebook("13_across_models"), as_version=4).cells
    ((line,),) = [found for c in cells if (found := ONE_LINE.findall(c.source))]
    make, target, given = shlex.split(line)
    makefile = (store.ROOT / "Makefile").read_text(encoding="utf-8")
    assert make == "make" and re.search(rf"(?m)^{target}:", makefile)
    assert (store.ROOT / given.removeprefix("PARAMS=")).is_file()


@pytest.mark.parametrize(
    ("stage", "name", "tried"),
    [
        ("00_ground_truth", "threshold", ground_truth.TRIED),
        ("04_circuit_discovery", "threshold", circuit_discovery.TRIED),
    ],
)
def test_the_command_tries_what_the_answer_speaks_of(stage, name, tried):
    cells = nbformat.read(stages.notebook(stage), as_version=4).cells
    ((line,),) = [found for c in cells if (found := ONE_LINE.findall(c.source))]
    words = shlex.split(line)
    assert words[-3:-1] == ["-p", name] and yaml.safe_load(words[-1]) == tried
    assert check(stage, {name: tried})
