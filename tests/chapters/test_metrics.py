"""The chapter on the metric: four of them against plain passes; what is kept, told and drawn."""

import dataclasses

import kept
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_tiny
from IPython.display import Markdown
from matplotlib.figure import Figure
from oracles import plain_logits
from scipy.stats import binomtest
from tokenizers_made import tokenizer_of

from seqcirc_utils.ablation import metrics as ablation
from seqcirc_utils.ablation.evaluator import Evaluator, logit_difference
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.analyses import specificity
from seqcirc_utils.chapters import metric_tasks
from seqcirc_utils.chapters import metrics as chapter
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.metric_tasks import (
    DIFFERENCE,
    KL,
    LEAD,
    LOG_PROB,
    METRICS,
    RANKED,
    SEARCHED,
    WAYS,
)
from seqcirc_utils.chapters.metrics import Metrics
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.figures import metrics as figures
from seqcirc_utils.methods import slopes
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing, sequences

TASKS = ["number_words", "months"]
PARAMETERS = {
    **{"tasks": TASKS, "templates": ["born"], "n_means": 4, "n_held": 3, "n_ranked": 4},
    **{"n_searched": 2, "ranking": "EAP-IG inputs", "n_rank_steps": 2, "share_kept": 0.4},
    **{"threshold": 0.5, "n_top": 3, "n_random": 2, "n_resampled": 20, "seed": 0},
}


class Roles:
    """What chapter 05 would have found."""

    def by_component(self):
        return {Component(layer, head): "transport" if head else "none" for layer, head in ALL}


ALL = [(layer, head) for layer in range(4) for head in (None, *range(8))]


def read(kind, task=None):
    assert kind is ComponentRoles
    return Roles()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    fillers = sequences.TEMPLATES["born"].fillers
    words = [" born in", *fillers, *(f" {filler}" for filler in fillers)]
    words += [f" {member}" for task in TASKS for member in sequences.TASKS[task].members]
    directory = save_tiny("llama", tmp_path_factory.mktemp("metrics"), tokenizer_of(r"\d", words))
    return loading.load(str(directory), "cpu")


@pytest.fixture(scope="module")
def liked():
    """Prompts whose answer is what the components raise most: a random model knows no sequence."""
    drawn = drawing.prompt_sets

    def draw(model, task, **counts):
        sets = drawn(model, task, **counts)
        means = record(model, sets.means).activations.mean()
        ids = torch.tensor([i for i in metric_tasks.vocabulary(task, model.tokenizer).ids if i])
        whole, empty = (
            plain_logits(model, sets.evaluation, names, means)[:, ids]
            for names in ([], components(model))
        )
        answer = (whole - empty).argmax(-1)
        below = whole < whole.gather(-1, answer[:, None])
        last = (empty - whole).masked_fill(~below, -torch.inf).argmax(-1)
        asked = {"answer_ids": ids[answer], "last_ids": ids[last]}
        return dataclasses.replace(sets, evaluation=dataclasses.replace(sets.evaluation, **asked))

    return draw


@pytest.fixture
def setting(model, liked, monkeypatch):
    monkeypatch.setattr(drawing, "prompt_sets", liked)
    return lambda **changes: Setting(PARAMETERS | changes, read=read, model=model)


@pytest.fixture(scope="module")
def found(model, liked, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "prompt_sets", liked)
        measured = Metrics.measure(Setting(PARAMETERS, read=read, model=model))
    where = tmp_path_factory.mktemp("found")
    return kept.kept_and_read(measured, where, index=True)


@pytest.fixture(scope="module")
def asked(model, liked):
    """Prompts, their means, the members, and an evaluator."""
    sets = liked(model, "months", n_prompts=3, n_means=4, n_discovery=1, seed=0)
    means = record(model, sets.means).activations.mean()
    members = [i for i in metric_tasks.vocabulary("months", model.tokenizer).ids if i is not None]
    return sets, means, members, Evaluator(model, sets.evaluation, means)


def by_hand(model, sets, means, members, names):
    """All metrics of whole passes, from their definitions, prompt by prompt."""
    logits = plain_logits(model, sets.evaluation, names, means).double()
    whole = plain_logits(model, sets.evaluation, [], means).double().log_softmax(-1)
    told = {name: [] for name in METRICS}
    for i, row in enumerate(logits):
        answer = int(sets.evaluation.answer_ids[i])
        others = [row[m] for m in members if m != answer]
        told[DIFFERENCE].append(row[answer] - row[int(sets.evaluation.last_ids[i])])
        told[LOG_PROB].append(row[answer] - row.logsumexp(-1))
        told[LEAD].append(row[answer] - sum(others) / len(others))
        kl = (whole[i].exp() * (whole[i] - row.log_softmax(-1))).sum()
        told[KL].append(-kl)
    return {name: torch.stack(values) for name, values in told.items()}


def the_metrics(members):
    answer = ablation.answer_log_prob
    made = logit_difference, answer, ablation.answer_over(members), ablation.minus_kl
    return dict(zip(METRICS, made, strict=True))


@pytest.mark.parametrize("names", [[], [Component(1, 2)], [Component(0, None), Component(1, 0)]])
def test_metrics_are_what_they_say(model, asked, names):
    sets, means, members, evaluator = asked
    expected = by_hand(model, sets, means, members, names)
    for name, metric in the_metrics(members).items():
        (values,) = evaluator.each([names], lambda s, metric=metric: (metric(evaluator, s),))
        torch.testing.assert_close(values[0].double(), expected[name], atol=1e-4, rtol=1e-4)
    assert abs(expected[KL]).max() == 0 if not names else abs(expected[KL]).max() > 1e-4


@pytest.mark.parametrize("name", METRICS)
def test_slopes_of_a_metric_are_its_change(model, asked, name):
    """At the embedding, against a small step along a direction."""
    sets, _, members, _ = asked
    metric = the_metrics(members)[name]
    pairs = slopes.Pairs.recorded(model, sets.evaluation, sets.corrupted, metric)
    middle = pairs.between(0.5)
    _, slope = slopes.slopes(pairs, middle)
    step = 3e-4 * torch.randn(middle.shape, generator=torch.Generator().manual_seed(0))

    def value(embedding):
        with torch.no_grad():
            final = pairs.clean.replay([pairs.nothing()], embedding, 0)
            return metric(pairs.clean, final)[0]

    change = (value(middle + step) - value(middle - step)) / 2
    expected = (slope * step).sum((1, 2))
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(change, expected, atol=3e-5, rtol=0.05)


def test_the_whole_keeps_all_and_the_empty_circuit_nothing(model, setting):
    task = metric_tasks.compared(setting(), {})["months"]
    sets = [[], components(model)]
    values = task.values(sets)
    for metric in task.metrics:
        kept = task.kept(metric, values[metric]).mean(1).tolist()
        assert kept == pytest.approx([1, 0], abs=1e-5)


def test_what_a_circuit_keeps_is_that_of_a_plain_pass(model, found, setting):
    one = metric_tasks.compared(setting(), {})["months"]
    size = found.n_kept
    assert size == round(0.4 * len(components(model)))
    chosen = np.argsort(-one.scores[KL].mean(1), kind="stable")[:size]
    circuit = {components(model)[i] for i in chosen}
    outside = [c for c in components(model) if c not in circuit]
    judge = one.judge
    made = judge.prompts, judge.replacement
    logits, empty = (plain_logits(model, made[0], n, made[1]) for n in (outside, components(model)))
    ids = judge.prompts.answer_ids[:, None]
    value, least = (x.log_softmax(-1).gather(-1, ids).mean().item() for x in (logits, empty))
    whole = plain_logits(model, made[0], [], made[1]).log_softmax(-1).gather(-1, ids).mean().item()
    judged = found.judged[found.judged["way"] == RANKED]
    rows = judged.set_index(["task", "circuit", "judge"])["mean"]
    share = (value - least) / (whole - least)
    assert rows["months", KL, LOG_PROB] == pytest.approx(share, abs=1e-3)
    right = (logits.argmax(-1) == ids[:, 0]).float().mean().item()
    assert rows["months", KL, "accuracy"] == pytest.approx(right)
    told = judged.set_index(["task", "circuit", "judge"]).loc[("months", KL, "accuracy")]
    n = len(ids)
    exact = binomtest(round(right * n), n).proportion_ci(method="exact")
    assert [told["low"], told["high"]] == pytest.approx([exact.low, exact.high], abs=1e-6)


def test_what_another_tasks_circuit_keeps_is_that_of_a_plain_pass(model, found, setting):
    tasks = metric_tasks.compared(setting(), {})
    scores, judge = tasks["number_words"].scores[LOG_PROB].mean(1), tasks["months"].judge
    chosen = set(np.argsort(-scores, kind="stable")[: found.n_kept])
    outside = [c for i, c in enumerate(components(model)) if i not in chosen]
    ids = judge.prompts.answer_ids[:, None]
    value, least, whole = (
        plain_logits(model, judge.prompts, names, judge.replacement)
        .log_softmax(-1)
        .gather(-1, ids)
        .mean()
        .item()
        for names in (outside, components(model), [])
    )
    transfer = found.transfer[found.transfer["way"] == RANKED]
    rows = transfer.set_index(["task", "circuit", "metric"])
    share = (value - least) / (whole - least)
    told = rows.loc[("months", "number_words", LOG_PROB)]
    assert told["mean"] == pytest.approx(share, abs=1e-3)
    assert told["low"] < told["mean"] < told["high"]
    assert len(rows) == len(TASKS) * len(METRICS)


@pytest.mark.parametrize("metric", [LOG_PROB, KL])
def test_a_searched_circuit_keeps_its_share_where_it_was_searched(model, found, setting, metric):
    """By plain passes; on held-out prompts it keeps what the table says, and no component idles."""
    one = metric_tasks.compared(setting(), {})["months"]
    members = found.circuits.set_index(["way", "task", "metric"])["members"]
    circuit = {Component.parse(name) for name in members[SEARCHED, "months", metric].split()}
    out = [c for c in components(model) if c not in circuit]
    assert circuit and out and found.n_searched == 2

    def share(evaluator, names):
        passes = (
            plain_logits(model, evaluator.prompts, some, evaluator.replacement).log_softmax(-1)
            for some in ([], components(model), names)
        )
        whole, *others = passes
        if metric == KL:
            empty, own = ((whole.exp() * (p - whole)).sum(-1).mean().item() for p in others)
            return (own - empty) / -empty
        ids = evaluator.answers.answer_ids[:, None]
        whole, empty, own = (p.gather(-1, ids).mean().item() for p in (whole, *others))
        return (own - empty) / (whole - empty)

    there = one.ranking.first(2)
    assert share(there, out) > 0.5 - 1e-3
    assert all(share(there, [*out, c]) < 0.5 + 1e-3 for c in circuit)
    rows = found.judged.set_index(["way", "task", "circuit", "judge"])["mean"]
    kept = rows[SEARCHED, "months", metric, metric]
    assert kept == pytest.approx(share(one.judge, out), abs=1e-3)
    table = figures.searched_table(found).reset_index().set_index(["task", "searched by"])
    told = table.loc[(sequences.TASKS["months"].title, metric)]
    heads = sum(c.head is not None for c in circuit)
    assert told["components"].startswith(f"{len(circuit)} ({heads} head")
    assert told["keeps of it"].startswith(f"{100 * kept:.0f}% [")
    both = [len(members[SEARCHED, task, metric].split()) for task in TASKS]
    assert table.loc[("All, means", metric), "components"] == f"{np.mean(both):.0f}"


def test_searches_can_be_left_out_and_one_that_fails_ends_itself(setting, monkeypatch):
    none = Metrics.measure(setting(n_searched=0, tasks=["months"]))
    assert none.left_out == {"Searches": "n_searched is 0."} and none.stay[SEARCHED] == []
    for table in (none.circuits, none.judged, none.shared, none.transfer, none.roles):
        assert SEARCHED not in set(table["way"])
    assert figures.searched_table(none).data == "No circuit was searched here."
    assert figures.numbers(none)["metrics-searched-answers"] == "none"
    own = metric_tasks.search.ranked

    def fails(*args, goal, **options):
        if goal.name.startswith(KL):
            raise CannotDo("no.")
        return own(*args, goal=goal, **options)

    monkeypatch.setattr(metric_tasks.search, "ranked", fails)
    found = Metrics.measure(setting(tasks=["months"]))
    assert found.left_out == {f"{sequences.TASKS['months'].title}, {KL}, searched": "no."}
    searched = found.circuits[found.circuits["way"] == SEARCHED]
    assert searched["metric"].tolist() == [DIFFERENCE, LOG_PROB, LEAD]


def test_a_metric_by_which_the_whole_is_not_ahead_is_left_out(setting, monkeypatch):
    monkeypatch.setattr(metric_tasks, "minus_kl", lambda e, s: -ablation.minus_kl(e, s))
    found = Metrics.measure(setting())
    said = "the whole model is not ahead of the empty circuit."
    assert found.left_out == {f"{sequences.TASKS[t].title}, {KL}": said for t in TASKS}
    assert KL not in set(found.judged["judge"]) | set(found.shared["metric"])
    assert said in figures.left_out_told(found).data


def test_roles_that_cannot_be_told_leave_the_rest(model, setting):
    at = setting()

    def refuses(kind, task=None):
        raise UserError("no roles here.")

    at._read = refuses
    found = Metrics.measure(at)
    assert found.missing == {"roles": "no roles here."} and not found.judged.empty
    assert figures.roles_table(found).data == "Not here: no roles here."


def test_without_a_task_nothing_is_compared(setting, monkeypatch):
    def cannot(*args, **options):
        raise CannotDo("it cannot.")

    monkeypatch.setattr(drawing, "prompt_sets", cannot)
    with pytest.raises(CannotDo, match="No task can be done"):
        Metrics.measure(setting())


def test_everything_is_drawn_and_told(found):
    for draw in (figures.judged_map, figures.overlap_map, figures.effects_dots):
        assert isinstance(draw(found), Figure)
    for tell in (figures.headline, figures.effects_told, figures.left_out_told):
        told = tell(found)
        assert isinstance(told, Markdown) and "nan" not in told.data
    for show in (
        figures.judged_table,
        figures.sizes_table,
        figures.shared_table,
        figures.roles_table,
        figures.searched_table,
    ):
        assert not show(found).empty
    assert isinstance(figures.judged_map(found, SEARCHED), Figure)
    assert "by every metric" in figures.searched_told(found).data
    assert set(found.circuits["way"]) == set(WAYS)
    assert "C8, searched circuits. The circuit of number" in figures.verdict_table(found).data
    roles = figures.roles_table(found).to_numpy()
    assert roles.sum() == len(TASKS) * len(METRICS) * found.n_kept


OUTCOMES = [
    ((0.9, 0.81, 1.0), "90% (81% to 100%: the same)"),
    ((0.9, 0.7, 1.1), "90% (70% to 110%: undecided)"),
    ((0.6, 0.5, 0.7), "60% (50% to 70%: partly the same)"),
    ((0.2, 0.1, 0.49), "20% (10% to 49%: another)"),
    ((0.9, np.nan, np.nan), "90% (no interval: undecided)"),
]


@pytest.mark.parametrize(("row", "words"), OUTCOMES)
def test_the_sentence_follows_the_whole_interval(found, row, words):
    rows = found.agreement.assign(**dict(zip(("share", "low", "high"), row, strict=True)))
    made = dataclasses.replace(found, agreement=rows)
    assert figures.headline(made).data.count(f" {words}") == 3
    numbers = figures.numbers(made)
    assert numbers["metrics-alike"] == f"{row[0]:.0%} to {row[0]:.0%}"
    assert numbers["metrics-alike-interval"] in words


def test_the_interval_of_an_agreement_is_over_the_prompts_of_all_tasks(setting):
    at = setting()
    tasks = metric_tasks.compared(at, {})
    frame = chapter._agreement(at, tasks, 6).set_index(["first", "second"])
    told = [
        specificity.agreement(one.scores[LOG_PROB], one.scores[KL], 6, 20, 0)
        for one in tasks.values()
    ]
    row = frame.loc[(LOG_PROB, KL)]
    assert row["share"] == pytest.approx(np.mean([share for share, _ in told]))
    error = np.sqrt(sum(variance for _, variance in told)) / len(TASKS)
    # Student's t with 2 * (4 - 1) degrees of freedom: 2.4469
    assert row["high"] - row["share"] == pytest.approx(2.4469 * error, rel=1e-3)
    assert row["share"] - row["low"] == pytest.approx(row["high"] - row["share"])


def test_a_head_that_serves_the_difference_only_is_named(found):
    def effect(component, metric, mean, width=0.01):
        told = {"task": "months", "component": component, "metric": metric}
        return told | {"mean": mean, "low": mean - width, "high": mean + width}

    rows = [effect("1.1", m, -0.2 if m == DIFFERENCE else 0.0) for m in METRICS]
    rows += [effect("1.2", m, -0.2) for m in METRICS]
    rows += [effect("mlp1", m, -0.2 if m == DIFFERENCE else 0.0) for m in METRICS]
    rows += [effect("1.3", DIFFERENCE, -0.2)]
    rows += [effect("1.3", m, -0.005, 0.02) for m in METRICS if m != DIFFERENCE]
    made = dataclasses.replace(found, effects=pd.DataFrame(rows))
    assert figures.only(made) == (["1.1 (months)"], ["1.3 (months)"])
    told = figures.effects_told(made).data
    assert "of 3 pairs of head and task: **1** (1.1 (months))" in told
    assert "Not decided: 1 (1.3 (months))" in told and "more than 2%" in told


def test_a_metric_that_one_task_lacks_is_no_metric_of_all_tasks():
    everything = {Component(0, i) for i in range(3)}
    found = {(task, DIFFERENCE): {Component(0, 0)} for task in ("a", "b", "c")}
    found |= {(task, LOG_PROB): everything for task in ("a", "b")}
    frame, stay = chapter._shared(found, ["a", "b", "c"], 2, 3)
    # Of three heads in a layer each circuit has one at random: all agree in 3 of 27 draws.
    assert frame["layer_expected"].tolist() == pytest.approx([1 / 9]) == frame["layer_p"].tolist()
    assert frame["expected"].tolist() == pytest.approx([1 / 64])
    assert frame[["layer_low", "layer_high"]].to_numpy().tolist() == [[0, 1]]
    assert frame["metric"].tolist() == [DIFFERENCE] and stay == ["0.0"]


def test_what_a_component_alone_changes_is_that_of_a_plain_pass(model, found, setting):
    one = metric_tasks.compared(setting(), {})["months"]
    prompts, means = one.judge.prompts, one.judge.replacement
    rows = found.effects[(found.effects["task"] == "months")].set_index(["component", "metric"])
    ids = prompts.answer_ids[:, None]

    def log_prob(names):
        logits = plain_logits(model, prompts, names, means)
        return logits.log_softmax(-1).gather(-1, ids).mean().item()

    whole, empty = log_prob([]), log_prob(components(model))
    listed = rows.index.get_level_values("component").unique()
    assert len(listed) > 2
    for name in listed:
        change = (log_prob([Component.parse(name)]) - whole) / (whole - empty)
        assert rows.loc[(name, LOG_PROB), "mean"] == pytest.approx(change, abs=1e-3)


def test_roles_of_one_count_stand_in_the_order_of_the_model(setting):
    """A set of components has another order in each process."""
    members = [Component(layer, head) for layer in (2, 0, 1) for head in (3, None)]

    class Backwards(set):
        def __iter__(self):
            return iter(members)

    class Named:
        def by_component(self):
            return {c: str(c) for c in members}

    at = setting()
    at._read = lambda kind, task=None: Named()
    rows = chapter._roles(at, {("months", DIFFERENCE): Backwards(members)})
    assert rows["role"].tolist() == ["0.3", "mlp0", "1.3", "mlp1", "2.3", "mlp2"]
