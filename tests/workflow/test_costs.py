"""The estimate of a run's time."""

import re
from types import SimpleNamespace

import pytest

from seqcirc_utils import commands, store
from seqcirc_utils.workflow import costs, stages
from seqcirc_utils.workflow.planning import read_plan

SIZES = {"default": "4", "laptop": "32"}


@pytest.mark.parametrize(("cores", "end"), [(1, 10), (2, 6), (3, 6)])
def test_a_chain_goes_first_and_cores_help_up_to_it(cores, end):
    # 0 -> 1 is a chain of 6 seconds; 2 and 3 fill the gaps.
    assert costs.makespan([1, 5, 2, 2], [[], [0], [], []], cores) == end
    assert costs.makespan([2, 2, 1, 5], [[], [], [], [2]], cores) == end


@pytest.mark.parametrize(("cores", "end"), [(2, 9), (3, 7), (4, 5)])
def test_a_job_takes_as_many_cores_as_it_has_threads(cores, end):
    # Two jobs of five and two seconds that want two cores each, and two small ones.
    assert costs.makespan([5, 2, 2, 2], [[], [], [], []], cores, [2, 2, 1, 1]) == end


def test_stages_go_by_the_longest_chain_behind_them(monkeypatch):
    measured = {"03_patching": {"4": 1, "32": 5}, "04_circuit_discovery": {"32": 9}}
    measured |= {"09_claims": {"any": 2}, "15_metrics": {"32": 30}}
    monkeypatch.setattr(costs, "shipped", lambda: {"cpu_seconds": measured})
    chains = costs.chains()
    assert list(chains) == list(reversed(stages.STAGES))
    assert chains["15_metrics"] == 30 and chains["14_explore"] == 0
    assert chains["05_component_roles"] == 30  # not measured itself, and 15 reads it
    assert chains["04_circuit_discovery"] == 39 and chains["03_patching"] == 44


def test_the_graph_runs_them_in_that_order():
    """The jobs' priorities are numbers, and those behind whom most waits have the highest."""
    said = store.ROOT.joinpath("Snakefile").read_text(encoding="utf-8")
    assert "priority: _chains[_stage.name]" in said and "_chains = _costs.chains()" in said
    chains = costs.chains()
    assert all(isinstance(value, int) for value in chains.values())
    for name, stage in stages.STAGES.items():
        assert all(chains[name] <= chains[need] for need in stage.needs)


def test_threads_are_for_many_cores_and_for_what_is_waited_for():
    names = ["00_ground_truth", "02_logit_attribution", "04_circuit_discovery", "07_generalisation"]
    for cores, wanted in {2: (1, 1, 1, 1), 5: (1, 1, 1, 1), 8: (1, 1, 2, 2)}.items():
        assert tuple(stages.threads(stages.STAGES[n], cores) for n in names) == wanted
    assert stages.threads(stages.STAGES["03_patching"], 64) == 4


def test_more_threads_are_as_fast_as_was_measured(monkeypatch):
    given = {"speedup": {"2": 1.5}}
    assert [costs.speedup(given, n) for n in (1, 2, 4)] == [1, 1.5, 1.5]
    assert costs.speedup({}, 2) == 1
    monkeypatch.setattr(costs.progress, "recorded", lambda jobs, **how: {})
    monkeypatch.setattr(costs.Job, "is_current", lambda job: False)
    jobs, known = read_plan(store.ROOT / "params" / "laptop.yml", "").jobs(), costs.shipped()

    def minutes(speedup):
        monkeypatch.setattr(costs, "shipped", lambda: known | {"speedup": speedup})
        return [int(part.split()[0]) for part in costs.told(jobs).split(": ")[-1].split(", ")]

    slow, fast = minutes({}), minutes({"2": 2.0})
    assert slow[:2] == fast[:2] and fast[2] < slow[2] and fast[3] < slow[3]


def test_a_line_goes_through_what_was_measured():
    assert costs.at_size({"4": 10, "32": 38}, 18) == pytest.approx(24)
    assert costs.at_size({"4": 10, "32": 38, "64": 38}, 100) == pytest.approx(38)
    assert costs.at_size({"4": 10, "32": 0}, 100) == 0
    assert costs.at_size({"4": 10}, 4) == costs.at_size({"any": 10}, 32) == 10
    assert costs.at_size({"4": 10}, 32) is None


@pytest.mark.parametrize("file", SIZES)
def test_a_measured_size_takes_what_was_measured(file, monkeypatch):
    """By stage, whatever stages there are by now; those not measured are unknown, and said."""
    monkeypatch.setattr(costs.progress, "recorded", lambda jobs, **how: {})
    given, jobs = costs.shipped(), read_plan(store.ROOT / "params" / f"{file}.yml", "").jobs()
    assert set(given["cpu_seconds"]) <= set(stages.STAGES)
    known = costs.seconds(jobs, given)
    assert known
    for job in jobs:
        measured = given["cpu_seconds"].get(job.stage, {})
        assert known.get(job.record) == measured.get(SIZES[file], measured.get("any"))


def test_a_stage_that_was_not_measured_is_told_and_all_else_goes_on(monkeypatch):
    monkeypatch.setattr(costs.progress, "recorded", lambda jobs, **how: {})
    monkeypatch.setattr(costs.Job, "is_current", lambda job: False)
    given, jobs = costs.shipped(), read_plan(store.ROOT / "params" / "laptop.yml", "").jobs()
    del given["cpu_seconds"]["03_patching"]
    monkeypatch.setattr(costs, "shipped", lambda: given)
    said = costs.told(jobs)
    assert "is not known: 03_patching" in said and "CPU-minutes" in said
    assert "04_circuit_discovery" not in said
    times = [int(part.split()[0]) for part in said.split(": ")[-1].split(", ")]
    assert times == sorted(times, reverse=True) and times[0] > times[-1] >= 1


def test_another_model_is_not_guessed_and_earlier_runs_go_first(monkeypatch):
    given, file = costs.shipped(), store.ROOT / "params" / "laptop.yml"
    jobs = read_plan(file, "gpt2").jobs()
    monkeypatch.setattr(costs.progress, "recorded", lambda jobs, **how: {})
    assert not costs.seconds(jobs, given)
    assert "not known" in costs.told(jobs)
    monkeypatch.setattr(costs.progress, "recorded", lambda jobs, **how: {jobs[0].name: 7.0})
    assert costs.seconds(jobs, given) == {jobs[0].record: 7.0}


def test_what_several_cores_worked_is_what_one_would_take(tmp_path):
    """After a run on many cores the plan for two was too short."""
    values = {"model": "some-model", "n_prompts": 3}
    jobs = []
    for name, told in (
        ("many", {"seconds": 10.0, "cpu_seconds": 38.0}),
        ("gpu", {"seconds": 9.0, "cpu_seconds": 4.0}),
        ("old", {"seconds": 5.0}),
    ):
        record = store.write_json(tmp_path / f"{name}.run.json", told)
        plan = SimpleNamespace(model="some-model", values=values)
        jobs.append(SimpleNamespace(name=name, record=record, stage=name, plan=plan))
    known = costs.seconds(jobs, {"model": "other", "cpu_seconds": {}})
    assert [known[job.record] for job in jobs] == [38.0, 9.0, 5.0]
    assert costs.progress.recorded(jobs) == {"many": 10.0, "gpu": 9.0, "old": 5.0}


def test_without_the_file_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert costs.shipped()["cpu_seconds"] == {}


def test_a_plan_that_no_run_would_take_is_refused(tmp_path, capsys):
    file = tmp_path / "mine.yml"
    file.write_text("tasks: [months]\nlayer_step: -3\n")
    assert commands.main(["plan", "--params", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "11_interchange: layer_step is -3: allowed is a whole" in said.err


def test_plan_tells_it_and_runs_nothing(capsys):
    assert commands.main(["plan", "--params", "params/quick.yml"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"(\d+ of \d+ jobs are to be run|Nothing is to be run)", said)
