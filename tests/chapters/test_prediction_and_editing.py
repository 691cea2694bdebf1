"""The chapter on prediction and editing, on a tiny model and on a planted one."""

import dataclasses
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from seqcirc_utils.chapters import prediction_and_editing as chapter
from seqcirc_utils.chapters.prediction_and_editing import PredictionAndEditing
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.figures import edits as edit_figures
from seqcirc_utils.figures import prediction_and_editing as figures
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.prompts import drawing, scores

PARAMETERS = {
    "tasks": ["months", "digits", "days"],
    "templates": ["born"],
    "pool_templates": ["born", "lost"],
    "lengths": [2, 4],
    "factors": [0.0, 2.0],
    "n_prompts": 8,
    "n_means": 4,
    "n_random": 3,
    "seed": 2,
}


def named(names):
    return {Component.parse(name) for name in names.split()}


CIRCUITS = {"months": named("1.2 2.0 mlp0 mlp2"), "digits": named("1.2 2.3 mlp0")}


def read(kind, task):
    """What chapters 03 and 04 found: no circuit of days; every component costs something."""
    if task == "days":
        raise CannotDo("the model cannot count days.")
    if kind.stage == "04_circuit_discovery":
        return SimpleNamespace(circuit=SimpleNamespace(components=CIRCUITS[task]))
    names = [Component(layer, head) for layer in range(3) for head in (0, 1, 2, 3, None)]
    costs = [-0.1 - 0.01 * i - 0.2 * (task == "digits") for i in range(len(names))]
    table = pd.DataFrame({"component": list(map(str, names)), "ablation": costs})
    return SimpleNamespace(effects=table.assign(ablation_high=table["ablation"] + 0.05))


def measure(model, read=read, **changes):
    return PredictionAndEditing.measure(Setting(PARAMETERS | changes, read=read, model=model))


@pytest.fixture(scope="module")
def found(gpt2, sets, tmp_path_factory):
    """Findings that were measured, and the same written and read again."""
    where = tmp_path_factory.mktemp("found")
    with pytest.MonkeyPatch.context() as patch:
        # The tiny models' words write no text; prompts will do.
        patch.setattr(chapter, "text_chunks", lambda model: (sets.evaluation.tokens, None))
        measured = measure(gpt2)
    measured.save(where)
    return measured, PredictionAndEditing.load(where)


def test_what_was_written_is_read_again(found):
    for field in dataclasses.fields(PredictionAndEditing):
        first, second = (getattr(each, field.name) for each in found)
        if isinstance(first, pd.DataFrame):
            assert len(first), field.name
            pd.testing.assert_frame_equal(first, second, check_dtype=False)
        else:
            assert first == second, field.name


def test_what_is_left_out_is_told(found):
    _, found = found
    assert found.skipped == {"Days": "the model cannot count days."}
    assert figures.tasks_told(found).data == (
        "- **Days is left out:** the model cannot count days."
    )
    assert list(found.circuit_sizes.items()) == [("months", 4), ("digits", 3)]
    assert set(found.not_targets) == {"Indirect object", "Greater-than"}
    assert not found.missing and not found.left_out


def test_predictions_are_those_of_the_pool(found, gpt2):
    _, found = found
    assert found.points.groupby("task").size().to_dict() == {"months": 8, "digits": 8}
    rows = found.prediction.set_index(["task", "measure", "subset"])
    assert rows.loc[("months", "vocabulary", "all"), "n"] == 8
    # The first cell is the first two of the pool: two members, spread over the whole sequence.
    starts = len(chapter.vocabulary("months", gpt2.tokenizer).starts(2))
    prompts = drawing.clean_prompts(gpt2, "months", starts, n_members=2, seed=PARAMETERS["seed"])
    prompts = prompts[[prompts.starts.index(start) for start in (0, starts - 1)]]
    with torch.no_grad():
        logits = gpt2.bridge(prompts.tokens)[:, -1]
    expected = scores.Scores.read(logits, prompts)
    points = found.points[found.points["task"] == "months"].head(2)
    assert points["whole"].tolist() == pytest.approx(expected.logit_diff.tolist(), abs=1e-4)
    assert points["right"].tolist() == expected.correct.tolist()
    assert found.errors.groupby("task").size().max() == 2  # a quarter of the prompts
    inside = [Component.parse(r.component) in CIRCUITS[r.task] for r in found.errors.itertuples()]
    assert found.errors["in_circuit"].tolist() == inside
    for error in found.errors.itertuples():
        with torch.no_grad():
            top = gpt2.bridge(gpt2.bridge.to_tokens(error.prompt, prepend_bos=True))[0, -1].argmax()
        assert error.said == gpt2.tokenizer.decode([int(top)]).strip() and error.margin > 0


def test_edits_are_of_the_parts_that_the_rule_picks(found, gpt2):
    _, found = found
    picked = found.edits.drop_duplicates(["edited_task", "part"])
    assert picked.set_index(["edited_task", "part"])["component"].to_dict() == {
        ("months", "shared head"): "1.2",
        ("months", "own head"): "2.0",
        ("months", "MLP"): "mlp2",
        ("months", "upper MLP"): "mlp2",
        ("digits", "shared head"): "1.2",
        ("digits", "own head"): "2.3",
        ("digits", "MLP"): "mlp0",
    }
    assert list(found.edits["target"].unique()) == ["months", "digits", "text"]
    seed = PARAMETERS["seed"]
    prompts = drawing.clean_prompts(gpt2, "months", 4, seed=seed)  # half of the prompts
    before = scores.score(gpt2, prompts).logit_diff

    def after(component):
        """Logit differences without a head, by a whole pass."""

        def remove(z, hook):
            z = z.clone()
            z[:, :, component.head] = 0
            return z

        hook = (f"blocks.{component.layer}.attn.hook_z", remove)
        with torch.no_grad():
            logits = gpt2.bridge.run_with_hooks(prompts.tokens, fwd_hooks=[hook])[:, -1]
        return scores.Scores.read(logits, prompts).logit_diff

    edits = found.edits[(found.edits["factor"] == 0) & (found.edits["component"] == "1.2")]
    row = edits[edits["target"] == "months"].iloc[0]
    expected = before.mean().item(), after(Component(1, 2)).mean().item()
    assert (row["score_before"], row["score_after"]) == pytest.approx(expected, abs=1e-4)
    random = chapter.editing.random_components(
        [Component.parse(name) for name in picked["component"]], 3, 4, PARAMETERS["n_random"], seed
    )
    heads = [c for c in random if c.head is not None]
    null = [(after(c) - before)[:2].mean().item() for c in heads]  # an eighth, but two at least
    assert row["random_mean"] == pytest.approx(sum(null) / len(null), abs=1e-4)
    assert (edits["n"] == 4).all() and row["draws"] == len(heads) == 3


def test_selectivity_is_of_the_costs_that_patching_found(found):
    _, found = found
    rows = found.selectivity.set_index(["task", "component"])
    # On digits every component costs 0.2 more.
    own = 0.1 + 0.01 * 7
    assert rows.loc[("months", "1.2"), "collateral"] == pytest.approx((own + 0.2) / own)
    assert set(rows["group"]) == {"shared head", "own head"}
    assert 0 < found.collateral["p"] <= 1


def test_sentences_tables_and_figures_are_those_of_the_findings(found):
    _, found = found
    draw = (
        figures.prediction_bars,
        figures.prediction_scatter,
        edit_figures.responses,
        edit_figures.damage_map,
        edit_figures.selectivity_scatter,
    )
    assert all(isinstance(figure(found), Figure) for figure in draw)
    _, _, all_prompts, *others = figures.prediction_table(found).data.split("<tr><")
    assert len(others) == 4 and 'data-of="Digits"' in all_prompts
    rows = found.prediction.set_index(["task", "measure", "subset"])["agreement"]
    share = rows["months", "vocabulary", "all"]
    assert re.search(rf'data-of="Months">{share:.0%} \(.*; n = 8\)\n', all_prompts)
    told = figures.prediction_told(found).data
    rows = found.prediction[found.prediction["measure"] == "vocabulary"]
    rows = rows[rows["n"] > 0]  # the model gets none right: that stood as nan%
    means = rows.groupby("subset")[["agreement", "random_mean"]].mean()
    expected = [
        f"{means.loc[kind, 'agreement']:.0%} of the prompts that the model gets {kind} (random "
        f"circuits {means.loc[kind, 'random_mean']:.0%})"
        for kind in ("right", "wrong")
        if kind in means.index
    ]
    first = figures.headline(found).data
    assert first.endswith(f"what the model says in {' and '.join(expected)}.")
    assert "That holds for **0 of 2** tasks with errors." in told
    assert told.endswith("With 3 random circuits p cannot fall below 0.25: too few to tell.")
    assert list(figures.error_table(found).index.unique()) == ["Months", "Digits"]
    assert set(figures.error_table(found)["in circuit"]) <= {"yes", "no"}
    told = figures.errors_told(found).data.splitlines()
    expected = 2 * 4 / 15
    assert told[0].startswith(
        "- **Months**: errors looked into: 2. The circuit makes the same one in "
    )
    assert told[0].endswith(f" of 2 ({expected:.1f} expected of any component).")
    (upper,) = (
        r for r in edit_figures.damage_table(found).data.split("<tr>") if ">upper MLP<" in r
    )
    edits = found.edits.set_index(["part", "factor", "edited_task", "target"])
    row = edits.loc[("upper MLP", 0, "months", "months")]
    lost, text = 100 * row["change"] / row["score_before"], ("upper MLP", 0, "months", "text")
    assert f'data-of="the task meant">months mlp2: {lost:+.0f}% (p = ' in upper
    change = edits.loc[text, "change"]
    assert f'data-of="text">{change:+.2f} nats per token (4 pieces)\n' in upper
    assert f'data-of="control tasks (mean)">{edit_figures.NOTHING}<' in upper
    told = edit_figures.boosts_told(found).data
    assert told.count("- Not a target: ") == 2
    told = edit_figures.selectivity_told(found).data
    assert "for what every circuit holds (1 head)" in told
    assert "for what only one holds (2 heads)" in told


def test_accuracy_that_cannot_rise_is_not_counted_as_staying(found):
    made = found[1].edits.assign(accuracy_before=1.0, accuracy_after=1.0)
    told = edit_figures.boosts_told(dataclasses.replace(found[1], edits=made)).data
    assert "Accuracy cannot rise: it is 100% before." in told
    made = made.assign(accuracy_before=0.5)
    boosts = made[
        (made["factor"] == made["factor"].max()) & (made["target"] == made["edited_task"])
    ]
    told = edit_figures.boosts_told(dataclasses.replace(found[1], edits=made)).data
    assert f"rises in {len(boosts)} of the {len(boosts)} where it is below 100%" in told


@pytest.mark.parametrize(
    ("shared", "own", "p", "said"),
    [
        (2.0, 1.0, 0.2, "may be chance"),
        (2.0, 1.0, 0.01, "a task's own heads are safer"),
        (1.0, 2.0, 0.01, "against expectation"),
        (1.0, None, None, "cannot be compared"),
    ],
)
def test_the_verdict_on_shared_heads_follows_the_test(found, shared, own, p, said):
    changed = dataclasses.replace(found[1], collateral={"shared": shared, "own": own, "p": p})
    assert said in edit_figures.selectivity_told(changed).data


def test_text_counts_as_damaged_where_its_loss_rises(found):
    edits = found[1].edits.assign(change=1.0, score_before=4.0)
    changed = dataclasses.replace(found[1], edits=edits)
    axis = edit_figures.damage_map(changed).axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["Months", "Digits", "Text (loss)"]
    assert [t.get_text() for t in axis.texts][:3] == ["25", "25", "−25"]
    names = [t.get_text() for t in axis.get_yticklabels()]
    assert names[:2] == ["1.2 (shared head: all)", "2.0 (own head: months)"]


def test_a_task_that_cannot_be_predicted_ends_only_itself(gpt2, monkeypatch):
    predict = chapter.prediction.predict

    def only_months(*arguments):
        if arguments[-1].endswith("digits"):
            raise UserError("no logits.")
        return predict(*arguments)

    monkeypatch.setattr(chapter.prediction, "predict", only_months)
    found = measure(gpt2)
    assert found.left_out == {"Digits": "no logits."}
    assert set(found.prediction["task"]) == {"months"}
    assert set(found.edits["edited_task"]) == {"months", "digits"}
    assert "- Left out: Digits: no logits." in figures.prediction_told(found).data


def path(without=()):
    """A planted model, and what chapters 03 and 04 find of it: all of its circuit or less."""
    planted = PLANTED["path"]
    effects = pd.DataFrame({"component": list(map(str, planted.parts)), "ablation": 0.0})
    effects.loc[effects["component"].map(Component.parse).isin(planted.circuit), "ablation"] = -1
    effects["ablation_high"] = effects["ablation"]
    circuit = SimpleNamespace(components=set(planted.circuit) - set(without))
    known = SimpleNamespace(effects=effects, circuit=circuit)
    return planted.build(), lambda kind, task: known


def test_a_planted_circuit_says_all_and_what_is_not_there_is_told(tmp_path):
    measure(*path()).save(tmp_path)
    found = PredictionAndEditing.load(tmp_path)
    assert set(found.skipped) == {"Digits", "Days"}  # this model was built for months
    same = found.prediction.set_index(["measure", "subset"])["agreement"]
    assert same["vocabulary", "all"] == 1 and found.points["right"].all()
    assert figures.error_table(found).data == "The model makes no error on the pool."
    assert figures.errors_told(found).data == "No errors."
    wrong = figures.prediction_table(found).data.split("where it is wrong<")[1]
    assert wrong.split("<tr>")[0].count(">no such prompt</td>") == 1
    # Removing a part of the only path to the answer leaves nothing of the preference.
    removed = found.edits[(found.edits["factor"] == 0) & (found.edits["part"] == "own head")]
    assert removed["score_after"].tolist() == pytest.approx([0.0], abs=1e-3)
    assert set(found.not_targets) == {"Indirect object", "Greater-than", "Text"}
    assert set(found.missing) == {"selectivity"}
    assert edit_figures.selectivity_scatter(found).data.startswith("Not here: it takes two tasks")


def test_a_circuit_is_judged_by_the_whole_model_not_by_itself():
    found = measure(*path(without=named("mlp2 mlp1")), factors=[0.0])
    same = found.prediction.set_index(["measure", "subset"])["agreement"]
    assert same["vocabulary", "all"] < 1 and found.points["right"].all()
    assert (found.points["circuit"] < found.points["whole"]).all()


def test_without_a_task_everything_is_missing_and_nothing_fails(gpt2, tmp_path):
    measure(gpt2, tasks=["days"]).save(tmp_path)
    found = PredictionAndEditing.load(tmp_path)
    assert set(found.missing) == {"prediction", "edits", "selectivity"}
    draw = [figures.prediction_bars, figures.prediction_scatter, figures.prediction_told]
    draw += [figures.error_table, figures.errors_told, edit_figures.responses]
    draw += [edit_figures.damage_map, edit_figures.boosts_told, edit_figures.selectivity_scatter]
    draw += [figures.prediction_table, edit_figures.damage_table]
    assert {figure(found).data for figure in draw} == {"Not here: no task can be examined."}
    assert "cannot be compared" in edit_figures.selectivity_told(found).data
    assert "No circuit could be held against" in figures.headline(found).data
