"""What the tasks share, measured on a small model, kept in files, told and drawn from them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_tiny
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from tokenizers_made import tokenizer_of

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.analyses.roles import EVIDENCE_COLUMNS
from seqcirc_utils.chapters import circuit_tasks, cross_task
from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.figures import cross_task as figures
from seqcirc_utils.figures import cross_task_told as told
from seqcirc_utils.figures.profiles import facts
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import controls, sequences
from seqcirc_utils.typography import minus

TASKS = ["number_words", "months"]
PARAMETERS = {
    "tasks": TASKS,
    "templates": ["born"],
    "n_prompts": 3,
    "n_means": 4,
    "threshold": 0.5,
    "n_matched": 2,
    "n_discovery": 2,
    "seed": 0,
}
CIRCUITS = {
    "number_words": ["0.1", "1.0", "2.3", "mlp0", "mlp2"],
    "months": ["0.1", "1.0", "2.2", "mlp0"],
}
EDGES = {
    "number_words": ["0.1->1.0.v", "mlp0->2.3.q"],
    "months": ["0.1->1.0.v", "mlp0->1.0.k"],
}
ROLES = {"0.1": "copy", "1.0": "inhibition", "2.2": "copy", "2.3": "copy"}
SENTENCES = [
    *(told.left_out_told, told.overlap_told, told.edges_told, told.outside_told),
    *(told.transfer_told, told.random_told, told.core_told, told.text_told, told.roles_told),
    told.by_search_told,
]
SHOWN = [
    *(figures.tasks_table, figures.shared_map, figures.interactive_map, figures.overlap_table),
    figures.by_search_table,
    *(figures.importance_map, figures.transfer_map, figures.random_panels, figures.random_table),
    *(figures.core_map, figures.text_table),
    *(figures.shared_roles_table, figures.role_holders_table),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model whose tokenizer holds two tasks, the controls and the text."""
    words = [" born in", *sequences.TEMPLATES["born"].fillers]
    words += [f" {member}" for task in TASKS for member in sequences.TASKS[task].members]
    tokenizer = tokenizer_of(r"\d", words)
    directory = save_tiny("llama", tmp_path_factory.mktemp("cross"), tokenizer)
    return loading.load(str(directory), "cpu")


def liked(model, prompts, but=()):
    """The prompts with the question turned round where a random model prefers the wrong answer."""
    means = record(model, prompts).activations.mean()
    wrong = Evaluator(model, prompts, means).intact.logit_diff < 0
    wrong[list(but)] = ~wrong[list(but)]
    ids = torch.stack([prompts.answer_ids.reshape(len(wrong)), prompts.last_ids])
    answer, last = torch.where(wrong, ids.flip(0), ids)
    return replace(prompts, answer_ids=answer.reshape_as(prompts.answer_ids), last_ids=last)


class Small(Setting):
    """A setting whose random model does the tasks (except for some prompts)."""

    def __init__(self, model, but=(), absent=(), **parameters):
        super().__init__(PARAMETERS | parameters, read=self.found, model=model)
        self.but, self.absent = but, absent

    def sets(self, task=None):
        drawn = super().sets(task)
        return replace(drawn, evaluation=liked(self.model, drawn.evaluation, self.but))

    @staticmethod
    def effects(task, names):
        effect = np.random.default_rng(TASKS.index(task)).normal(size=len(names))
        table = {"component": names, "ablation": effect}
        return pd.DataFrame(table | {"ablation_low": effect - 1, "ablation_high": effect + 1})

    def found(self, kind, task):
        if (kind.stage, task) in self.absent:
            raise UserError(f"{kind.stage} of {task} failed.")
        names = list(map(str, components(self.model)))
        return {
            "03_patching": SimpleNamespace(effects=self.effects(task, names)),
            "04_circuit_discovery": SimpleNamespace(
                circuit=SimpleNamespace(
                    components=set(map(Component.parse, CIRCUITS[task])), edges=EDGES[task]
                ),
                by_search={
                    "sweep": set(map(Component.parse, CIRCUITS[task])),
                    "random": {Component(0, 1), Component(1, TASKS.index(task))},
                },
            ),
            "05_component_roles": SimpleNamespace(
                components=pd.DataFrame(
                    {
                        "component": names,
                        "role": [ROLES.get(name, "none") for name in names],
                        "confidence": 0.75,
                    }
                    | dict.fromkeys(EVIDENCE_COLUMNS, 0.25)
                ),
                by_component=lambda: {c: ROLES.get(str(c), "none") for c in components(self.model)},
            ),
        }[kind.stage]


@pytest.fixture(scope="module", autouse=True)
def liked_controls(model):
    draw = controls.prompt_sets

    def drawn(lm, task, **counts):
        sets = draw(lm, task, **counts)
        both = {k: liked(lm, getattr(sets, k)) for k in ("evaluation", "discovery")}
        return replace(sets, **both)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "prompt_sets", drawn)
        yield


@pytest.fixture(scope="module")
def measured(model):
    return CrossTask.measure(Small(model))


@pytest.fixture
def found(measured, tmp_path):
    measured.save(tmp_path)
    return CrossTask.load(tmp_path)


def text(shown):
    assert isinstance(shown, Markdown)
    return shown.data


def test_the_overlap_is_told_for_every_search(found):
    table = found.by_search.set_index("search")
    assert table["shared"].to_dict() == {"sweep": 2, "random": 1}
    assert table["sizes"].to_dict() == {"sweep": "3, 3", "random": "2, 2"}
    sweep = found.overlap.query("kind == 'heads'").iloc[-1]
    assert table.loc["sweep", "layer_p"] == sweep["layer_p"]
    shown = figures.by_search_table(found)
    assert shown.index.name == "search" and shown.index.tolist() == ["sweep", "random"]
    frame = found.by_search
    some = frame.assign(tasks=[frame["tasks"][0], frame["tasks"][0].split(" & ")[0]])
    assert figures.by_search_table(replace(found, by_search=some)).index.names == [
        "search",
        "tasks",
    ]
    for ps, said in (
        ([0.01, 0.2], "(p < 0.05) for sweep, but not for random."),
        ([0.01, 0.04], "(p < 0.05) for every search."),
        ([0.5, 0.2], "(p < 0.05) for no search."),
    ):
        changed = replace(found, by_search=found.by_search.assign(layer_p=ps))
        assert "share 1 to 2 heads" in text(told.by_search_told(changed))
        assert said in text(told.by_search_told(changed))
    one = replace(found, by_search=CrossTask.empty("by_search"))
    assert "nothing to compare" in text(told.by_search_told(one))


def test_all_that_is_known_of_a_component_stands_together(model, found):
    rows = found.profiles.set_index(["task", "component"])
    names = list(map(str, components(model)))
    assert list(rows.index) == [(task, name) for task in TASKS for name in names]
    known = Small.effects("months", names).set_index("component").loc["0.1"]
    row = rows.loc["months", "0.1"]
    assert row[["effect", "low", "high"]].tolist() == pytest.approx(known.tolist())
    assert row["inside"] and row["found"] == row["searches"] == 2  # its own and the "random" one
    assert rows.loc[("months", "2.3"), ["inside", "found"]].tolist() == [False, 0]
    edges = rows.loc[:, ["reads", "read_by"]]
    assert edges.loc["months", "1.0"].tolist() == ["0.1 mlp0", ""]
    assert edges.loc["months", "0.1"].tolist() == ["", "1.0"]
    assert edges.loc["number_words", "mlp0"].tolist() == ["", "2.3"]
    told = facts(found)["months"]
    assert set(map(str, told)) == {c for circuit in CIRCUITS.values() for c in circuit}
    effect, low, high = (f"{100 * v:+.1f}%".replace("-", "\u2212") for v in known)
    assert told[Component(0, 1)] == [
        "found by 2 of 2 searches",
        f"ablated alone: {effect} [{low}, {high}] of the lead",
        "attention: 25% from the end to members, 25% from members to earlier ones",
        "writes: answer +0.25, last member +0.25 logits",
        "adds by the logit lens: answer +25.0%, last member +25.0%",
        "read by 1.0",
    ]


def test_a_profile_leaves_out_what_is_not_known(model):
    without = CrossTask.measure(Small(model, absent={("05_component_roles", "months")}))
    rows = without.profiles.set_index(["task", "component"])
    assert rows.loc["months", ["to_members", "answer"]].isna().all(axis=None)
    assert rows.loc["number_words", ["to_members", "answer"]].notna().all(axis=None)
    said = " ".join(facts(without)["months"][Component(0, 1)])
    assert "attention" not in said and "writes" not in said and "nan" not in said


def test_findings_come_back_as_they_were(measured, found):
    assert (found.missing, found.left_out) == ({}, {})
    for name, value in vars(measured).items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(
                value.reset_index(drop=True).astype(getattr(found, name).dtypes),
                getattr(found, name),
            )
        else:
            assert getattr(found, name) == value, name
    assert found.tasks["task"].tolist() == [*TASKS, "ioi", "greater_than"]
    assert found.outside["prompts"] == PARAMETERS["n_discovery"]  # of 3
    assert found.circuits == {t: set(map(Component.parse, c)) for t, c in CIRCUITS.items()}


def test_everything_is_drawn_and_told_from_the_files(found, tmp_path):
    for show in SHOWN:
        assert isinstance(show(found), Figure | pd.DataFrame | HTML), show.__name__
    for tell in SENTENCES:
        said = text(tell(found))
        assert "Not here" not in said and "nan" not in said and "None" not in said, said
    figures.save_maps(found, tmp_path / "figures")
    assert {p.suffix for p in (tmp_path / "figures").iterdir()} == {".svg", ".png", ".html"}
    assert all(told.numbers(found).values())


def test_sentences_say_what_was_found(found):
    said = text(told.overlap_told(found))
    assert "All 2 circuits share **2 heads** (0.1, 1.0)" in said and "**1 MLP**" in said
    assert "share 1 edge." in text(told.edges_told(found))
    shares = found.transfer.set_index(["mode", "set", "task"])["mean"] * 100
    own = sorted(shares["kept", f"{t} circuit", t] for t in TASKS)
    assert f"On its own task a circuit keeps {own[0]:z.0f}% to {own[1]:z.0f}%" in text(
        told.transfer_told(found)
    )
    assert "copy (number words: 2.3; months: 2.2)" in text(told.roles_told(found))
    assert "**2 of 2**" in text(told.roles_told(found))
    assert "3 prompts of each task, 2 of each kind" in text(told.random_told(found))
    numbers = told.numbers(found)
    assert numbers["n-shared-heads"] == "2" and numbers["shared-head-list"] == "0.1, 1.0"
    assert numbers["circuit-size-list"] == (
        "3 heads and 2 MLPs (number words) and 3 heads and 1 MLP (months)"
    )


@pytest.mark.parametrize(("left", "aside"), [(0.3, True), (0.85, False)])
def test_the_finding_comes_first(found, left, aside):
    """The control is named in it where it loses much without the shared heads."""
    rows = found.transfer.set_index(["mode", "set", "task"])["mean"].copy()
    first, *others = found.tasks.loc[found.tasks["control"], "task"]
    new = {("heads", "core", control): 0.95 for control in others}
    new |= {("heads", "core", first): left, ("heads", "core", "months"): 0.1}
    new |= {("heads", "core", "number_words"): -0.2}
    new |= {("kept", "months circuit", "number_words"): 0.55}
    new |= {("kept", "number_words circuit", "months"): 0.25}
    for key, value in new.items():
        rows[key] = value
    made = replace(found, transfer=rows.reset_index())
    first = text(told.headline(made))
    assert f"The circuits share 2 of {found.shared['heads']['total']} heads" in first
    assert f"would share {found.layer_matched['expected']:.1f} by chance" in first
    assert "One task's circuit does 25% to 55% of another task." in first
    said = "the control tasks keep 30% to 95% of their lead, and the sequence tasks -20% to 10%"
    assert (said in first) == aside


def test_the_heat_maps_show_every_number(found):
    written = [
        text.get_text()
        for figure in (figures.transfer_map(found), figures.core_map(found))
        for axis in figure.axes
        for text in axis.texts
    ]
    percent = found.transfer[["mean", "low", "high"]] * 100
    wanted = [
        minus(f"{mean:z.0f}\n[{low:z.0f}, {high:z.0f}]") for mean, low, high in percent.to_numpy()
    ]
    assert sorted(written) == sorted(wanted)


def test_the_panels_show_every_circuit_and_every_draw(found):
    drawn = [
        y
        for axis in figures.random_panels(found).axes
        for points in axis.collections
        for _, y in points.get_offsets()
    ]
    own = found.against_random.drop_duplicates(["mode", "circuit", "task"])["value"]
    assert np.allclose(sorted(drawn), sorted(100 * pd.concat([own, found.random["mean"]])))


def test_a_task_without_a_circuit_is_left_out(model):
    found = CrossTask.measure(Small(model, absent={("04_circuit_discovery", "months")}))
    assert found.left_out == {"Months": "04_circuit_discovery of months failed."}
    assert list(found.circuits) == ["number_words"] and found.role_agreement is None
    assert "months" not in set(found.transfer["task"]) and "Months" not in found.importance
    assert "there is but one task" in text(told.transfer_told(found))
    assert told.numbers(found)["transfer-min"] == "none"
    assert "Fewer than two tasks have a circuit" in text(told.headline(found))


def test_without_any_circuit_all_sections_say_so(model, tmp_path):
    absent = {("03_patching", task) for task in TASKS}
    CrossTask.measure(Small(model, absent=absent)).save(tmp_path)
    found = CrossTask.load(tmp_path)
    assert found.transfer.empty and found.roles.empty and not found.sets
    assert len(figures.tasks_table(found)) == 2
    for show in [*SHOWN[1:], *SENTENCES[1:]]:
        assert "no " in text(show(found)).lower(), show.__name__
    assert "03_patching of months failed" in text(told.left_out_told(found))
    figures.save_maps(found, tmp_path / "figures")
    assert told.numbers(found)["task-list"] == "none"


def test_a_refused_section_leaves_the_others(model, measured, monkeypatch):
    """Roles, edges, plain text, the search from outside, and random circuits on a few prompts."""

    def refuse(*_, **__):
        raise UserError("the text is too short.")

    at = Small(model, but=[0], absent={("05_component_roles", "months")})
    monkeypatch.setattr(circuit_tasks, "few", lambda at: range(1))  # this one the model gets wrong
    monkeypatch.setattr(cross_task, "text_loss", refuse)
    monkeypatch.setattr(cross_task, "ranked", refuse)
    monkeypatch.setitem(EDGES, "months", [])
    found = CrossTask.measure(at)
    assert set(found.missing) == {"roles", "edges", "text", "random"}
    assert "05_component_roles of months failed" in text(figures.shared_roles_table(found))
    assert "no edges in the circuit of months" in text(told.edges_told(found))
    assert "too short" in text(told.text_told(found))
    assert "too short" in text(told.outside_told(found))
    assert "mean logit difference of -" in text(figures.random_panels(found))
    assert isinstance(figures.shared_map(found), Figure)
    assert found.overlap.equals(measured.overlap)
    assert "ioi circuit" not in found.sets and len(found.transfer) == 3 * 5 * 4
    assert "from outside" not in text(told.transfer_told(found))


def test_a_control_that_fails_on_few_prompts_refuses_only_itself(model, measured, monkeypatch):
    first, other = controls.TITLES
    draw = controls.prompt_sets

    def drawn(lm, task, **counts):
        sets = draw(lm, task, **counts)
        wrong = liked(lm, sets.evaluation, [0] if task == first else [])
        return replace(sets, evaluation=wrong)

    monkeypatch.setattr(controls, "prompt_sets", drawn)
    monkeypatch.setattr(circuit_tasks, "few", lambda at: range(1))
    found = CrossTask.measure(Small(model))
    name = f"{controls.TITLES[first]}, beside random circuits"
    assert list(found.left_out) == [name] and "random" not in found.missing
    assert set(found.random["task"]) == {*TASKS, other}
    assert set(found.transfer["task"]) == {*TASKS, first, other}
    assert name in text(told.left_out_told(found))
    assert isinstance(figures.random_panels(found), Figure)


def test_a_task_that_the_model_cannot_do_is_left_out(model):
    found = CrossTask.measure(Small(model, but=[0, 1, 2]))
    assert set(found.left_out) == {"Number words", "Months", "ioi circuit"}
    assert "mean logit difference of -" in found.left_out["Months"]
    assert issubclass(CannotDo, UserError) and "circuits" in found.missing
