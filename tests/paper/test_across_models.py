"""Results of several models, made by hand, are compared; what is missing is said, not filled in."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from seqcirc_utils import store
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.chapters.interchange import Interchange
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.errors import UserError
from seqcirc_utils.figures import across_models as figures
from seqcirc_utils.paper.across_models import AcrossModels, role_order
from seqcirc_utils.paper.verdicts import Claims
from seqcirc_utils.statistics import short

TASKS = ["digits", "months"]
OWN, OTHER = "smollm2-135m-instruct", "gemma3-270m"
ROLES = ["detects members", "moves", "inhibits", "next", "copies last member"]


def filled(kind, field, rows):
    """A table of a chapter; columns that are not given hold nothing."""
    empty, frame = kind.empty(field), pd.DataFrame(rows)
    for column in set(empty) - set(frame):
        frame[column] = {"i": 0, "b": False}.get(empty[column].dtype.kind, "")
    return frame[list(empty)]


class Results:
    """A results directory; models are written into it and changed."""

    def __init__(self, root):
        self.root = root

    def write(self, name, layers, verdicts, title=None, roles=ROLES, heads=3):
        where = self.root / name
        overall = {
            "model": {"title": title or name, "layers": layers, "heads": 4},
            "shared": {
                "heads": {
                    "shared": [f"{i}.0" for i in range(heads)],
                    **{"expected": 0.5, "p": 0.01, "total": 4 * layers},
                }
            },
            "layer_matched": {"expected": 1.5, "p": 0.2},
        }
        store.write_json(where / "06_cross_task.json", overall)
        tasks = [{"task": t, "control": t == "ioi"} for t in [*TASKS, "ioi"]]
        self._table(where, CrossTask, "tasks", tasks)
        rows = [{"claim": c, "topic": "t", "verdict": v} for c, v in verdicts.items()]
        self._table(where, Claims, "verdicts", rows)
        step = (layers - 1) // len(roles)
        found = [(f"{step * i}.0", step * i, role, True) for i, role in enumerate(roles)]
        found += [("0.1", 0, "next", False), (f"{layers - 1}.3", layers - 1, "none", True)]
        rows = [
            dict(zip(("component", "layer", "role", "in_circuit"), f, strict=True)) for f in found
        ]
        for task in TASKS:
            self._table(where / task, ComponentRoles, "components", rows)
            self.record(where / task, "05_component_roles")
        self.interchange(where, layers)
        for stage in ("06_cross_task", "09_claims", "11_interchange"):
            self.record(where, stage)

    def interchange(
        self, where, layers, best=True, n=8, across=(0.5, 1.0), random=0.125, draws=39, **told
    ):
        """Swaps before the first block and after the last, which is the one chosen."""
        told = {"best": layers if best else None, "n_layers": layers, "shared": ["1.0"]} | told
        store.write_json(where / "11_interchange.json", told)
        pairs = [(a, b) for a in TASKS for b in TASKS]
        some = {"digits": across[0], "months": across[1]}
        rows = [
            {"source": a, "base": b, "half": half, "layer": layer, "kind": kind, "n": n // 2}
            | {"wanted": (layer > 0) * share}
            for a, b in pairs
            for half, layer in [(h, at) for h in ("choosing", "judging") for at in (0, layers)]
            for kind, share in (
                ("deviation", 0.75 if a == b else some[a] * (half == "judging")),
                ("raw", 0.9),
                ("placebo", 0.25),
            )
            if kind != "placebo" or a == b
        ]
        self._table(where, Interchange, "layers", rows)
        sets = {"shared heads": 0.5, "random heads": random, "head 1.0": 0.6}
        rows = [
            {"source": a, "base": b, "set": name, "kind": kind}
            | {"wanted": 0.99 if a == b or kind == "raw" else share}
            for a, b in pairs
            for name, share in sets.items()
            for kind in ("deviation", "raw")
            if share is not None
        ]
        self._table(where, Interchange, "heads", rows if told["shared"] else [])
        rows = [
            {"source": a, "base": b, "draws": draws, "q": q}
            for (a, b), q in zip(pairs[1:3], (0.01, 0.2), strict=True)
        ]
        self._table(where, Interchange, "tests", rows if told["shared"] else [])

    def _table(self, where, kind, field, rows):
        frame = filled(kind, field, rows)
        (file,) = [file for file, name in kind.tables().items() if name == field]
        store.write_csv(where / file, frame)

    def record(self, where, stage, **told):
        made = {"n_prompts": 4, "model": where.name, "device": "cpu"}
        store.write_json(where / f"{stage}.run.json", {"parameters": made} | told)

    def measure(self, compare=(OWN, OTHER), n_prompts=4, model=OWN, current=None):
        def made(stage, task):
            return self.root / model / (task or "")

        given = {"model": model, "tasks": TASKS, "compare": list(compare), "device": "auto"}
        given |= {"n_prompts": n_prompts, "results": f"results/{self.root.name}"}
        return AcrossModels.measure(
            Setting(given, self.root / model / AcrossModels.stage, made=made, current=current)
        )


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "some")
    results.write(OWN, 31, {"C1": "supported", "C2": "supported", "C3": "not supported"}, "Own")
    return results


@pytest.fixture
def both(results):
    verdicts = {"C1": "supported", "C2": "not supported", "C3": "not supported"}
    results.write(OTHER, 16, verdicts, "Other", heads=2)
    return results


def said(found):
    return " ".join(
        tell(found).data
        for tell in (
            *(figures.models_told, figures.order_told, figures.swaps_told, figures.claims_told),
        )
    )


def drawn(found):
    tellers = figures.shared_bars, figures.depth_map, figures.swap_curves, figures.claims_map
    return [tell(found) for tell in tellers]


def test_two_models_are_compared(both, tmp_path):
    found = both.measure()
    assert found.compared == [OWN, OTHER] and (found.models["missing"] == "").all()
    assert found.shared[["heads", "total"]].to_numpy().tolist() == [[3, 124], [2, 64]]
    assert (found.shared["tasks"] == 2).all()  # no control
    depth = found.depth.set_index(["model", "task", "role"])
    assert depth.loc[(OWN, "months", "moves"), "median"] == pytest.approx(6 / 30)
    assert depth.loc[(OTHER, "digits", "next"), "first"] == pytest.approx(9 / 15)
    assert "none" not in depth.index.get_level_values("role")
    assert depth.loc[(OWN, "digits", "next"), "n"] == 1  # the one outside the circuit is not its
    (pair,) = found.order.to_dict("records")
    assert pair["tau"] == pytest.approx(1) and pair["p"] == pytest.approx(2 / 120)
    assert pair["least"] == pytest.approx(2 / 120)
    assert figures.carried(found)["alike"].to_list() == [True, False, True]
    assert "2 of 3 claims have the same verdict in every model" in said(found)
    assert "the verdicts differ for C2" in said(found)
    assert all(isinstance(figure, Figure) for figure in drawn(found))
    shown = figures.shared_table(found)
    assert list(shown.index) == ["Own", "Other"]
    assert shown.loc["Own", "p"] == short(found.shared["p"][0], 1) != "0"
    found.save(tmp_path)
    again = AcrossModels.load(tmp_path)
    for table in ("models", "shared", "depth", "order", "swaps", "swapped_heads", "claims"):
        pd.testing.assert_frame_equal(
            getattr(again, table), getattr(found, table), check_dtype=False
        )


def test_roles_in_the_opposite_order_are_told(results):
    results.write(OTHER, 16, {"C1": "supported"}, roles=ROLES[::-1])
    (pair,) = results.measure().order.to_dict("records")
    assert pair["tau"] == pytest.approx(-1) and pair["p"] == pytest.approx(2 / 120)


@pytest.mark.parametrize(("n", "p"), [(5, 2 / 120), (4, None), (1, None)])
def test_too_few_common_roles_get_no_p(results, n, p):
    results.write(OTHER, 16, {"C1": "supported"}, roles=ROLES[:n])
    found = results.measure()
    (pair,) = found.order.to_dict("records")
    assert np.isnan(pair["p"]) if p is None else pair["p"] == pytest.approx(p)
    assert ("too few for a test" in said(found)) == (n == 4)
    assert ("no order" in said(found)) == (n == 1)


def test_the_order_is_of_means_over_tasks():
    rows = [
        {"model": m, "task": t, "role": r, "median": d}
        for m, depths in {"a": [(0.0, 0.5), (0.4, 0.5)], "b": [(0.1, 0.1), (0.2, 0.2)]}.items()
        for r, pair in zip("xy", depths, strict=True)
        for t, d in zip(TASKS, pair, strict=True)
    ]
    (pair,) = role_order(pd.DataFrame(rows))
    assert pair["tau"] == pytest.approx(1) and pair["least"] == 1 and np.isnan(pair["p"])


def test_one_model_is_told_as_one(results):
    found = results.measure()
    assert found.compared == [OWN] and found.order.empty
    text = said(found)
    assert "One model's results are here" in text
    assert (
        f"`{OTHER}` is missing; to make it, run `make book MODEL={OTHER} PARAMS=params/some.yml`"
        in (text)
    )
    assert "Verdicts of two models are needed" in text and "no second order" in text
    assert all(isinstance(figure, Figure) for figure in drawn(found))


def test_models_join_by_being_listed(both):
    both.write("owner--third", 16, {"C1": "supported"}, "Third")
    assert both.measure().compared == [OWN, OTHER]
    found = both.measure((OTHER, "owner/third", "gpt2", "no-model"))
    assert found.compared == [OWN, OTHER, "owner/third"] and len(found.order) == 3
    assert found.claims.loc[1, "owner/third"] == ""  # it was not asked
    told = found.models.set_index("name")["missing"]
    assert "was not run" in told["gpt2"] and "unknown model 'no-model'" in told["no-model"]


def test_results_of_other_parameters_are_not_compared(both):
    found = both.measure(n_prompts=8)  # this model's own are made with the run's
    assert found.compared == [OWN]
    told = found.models.set_index("name").loc[OTHER, "missing"]
    assert "06_cross_task was run with another value of n_prompts" in told


def test_results_of_another_version_are_not_compared(both):
    stale = both.root / OTHER / "11_interchange.run.json"
    found = both.measure(current=lambda record: record != stale)
    assert found.compared == [OWN, OTHER]
    told = found.models.set_index("name").loc[OTHER, "missing"]
    assert told.startswith("interchange: 11_interchange of all tasks was made by another version")
    assert set(found.swaps["model"]) == {OWN} and set(found.shared["model"]) == {OWN, OTHER}
    assert both.measure(current=lambda record: False).compared == [OWN]


def test_a_part_that_is_missing_ends_only_itself(both):
    both.record(both.root / OTHER / "months", "05_component_roles", skipped="it cannot count")
    found = both.measure()
    assert found.compared == [OWN, OTHER]
    assert "05_component_roles of months was skipped: it cannot count" in said(found)
    assert OTHER in found.claims and len(found.shared) == 2


def test_nothing_at_all_is_told_and_drawn_as_words(results, monkeypatch):
    def made(stage, task):
        raise UserError("it failed")

    given = {"model": OWN, "tasks": TASKS, "compare": [OWN], "results": "results/some"}
    found = AcrossModels.measure(Setting(given, results.root / OWN / "x", made=made))
    assert found.compared == [] and "Results of 0 models are here: none" in said(found)
    assert all("nothing to draw" in shown.data for shown in drawn(found))


def test_verdicts_of_another_edition_are_drawn_too(both):
    found = both.measure()
    other = found.claims.assign(**{OTHER: "carries over in part"})
    assert isinstance(figures.claims_map(replace(found, claims=other)), Figure)


def test_where_the_interchange_works_is_told_of_each_model(both):
    found = both.measure()
    rows = found.swaps.set_index(["model", "swap", "half", "layer"])
    assert rows.index.is_unique and set(found.swaps["swap"]) == {
        *("another task", "the same task", "placebo")
    }
    chosen = rows.loc[(OTHER, "another task", "judging", 16)]
    assert chosen["depth"] == 1 and chosen["chosen"] and chosen["prompts"] == 2 * 4
    assert [chosen[k] for k in ("wanted", "least", "most")] == pytest.approx([0.75, 0.5, 1])
    assert rows.loc[(OWN, "another task", "choosing", 31), "wanted"] == 0  # the other half
    assert not rows.loc[(OWN, "placebo", "judging", 0), "chosen"]
    assert found.swapped_heads.to_dict("records")[1] == {
        **{"model": OTHER, "heads": 1, "wanted": 0.5, "random": 0.125},
        **{"more": 1, "pairs": 2, "testable": True},
    }
    text = figures.swaps_told(found).data.splitlines()
    assert len(text) == 2 and text[0] == (
        "- Own: at depth 1.00, 75% of answers are the interchanged one when another task's prompt "
        "is put in (50% to 100% by pair of tasks; 8 pairs of prompts), 75% from the same task, 25% "
        "for a move as long in a random direction. Shared heads swapped between tasks (1): 50%, as "
        "many random ones of like layers: 12%. They move the answer further than these in 1 of 2 "
        "pairs of tasks (corrected p < 0.05)."
    )


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"best": False}, "nothing could be judged"),
        ({"draws": 8}, "was not tested: too few random sets"),
        ({"random": None}, "no random heads were drawn"),
        ({"across": (0.5, 0.5)}, "(in every pair of tasks; 8 pairs of prompts)"),
    ],
)
def test_what_the_interchange_cannot_say_is_said(both, told, words):
    both.interchange(both.root / OTHER, 16, **told)
    first, second = figures.swaps_told(both.measure()).data.splitlines()
    assert words in second and words not in first


def test_models_without_shared_heads_swap_none(both):
    both.interchange(both.root / OTHER, 16, shared=[])
    found = both.measure()
    assert found.swapped_heads["model"].to_list() == [OWN]
    assert "Shared heads" not in figures.swaps_told(found).data.splitlines()[1]


def test_an_interchange_that_was_skipped_is_told(both):
    both.record(both.root / OTHER, "11_interchange", skipped="fewer than two circuits")
    found = both.measure()
    assert "interchange: 11_interchange of all tasks was skipped: fewer than two" in said(found)
    assert set(found.swaps["model"]) == {OWN} and OTHER in found.claims
