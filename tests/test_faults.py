"""What goes wrong in long runs: a clear line, no half file, nothing trusted that should not be.

The table of all faults is `book/faults.md`; it names these tests and those that stand elsewhere.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from stage_project import make, write_notebook

from seqcirc_utils import commands, store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import loading
from seqcirc_utils.publishing import building, pages
from seqcirc_utils.workflow import execution, fingerprint, notebook, planning, records
from seqcirc_utils.workflow.parameters import check

ROOT = store.ROOT
STAGE = "03_patching"
YEAR_2000, YEAR_2040 = 946684800, 2208988800


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make(tmp_path / "project", monkeypatch)


def planned(project, model="gpt2"):
    file = project / "params" / "mine.yml"
    file.write_text(yaml.safe_dump({"model": str(model), "tasks": ["months"]}))
    return planning.read_plan(file)


def finished(plan):
    """Leave what a run of the stage leaves."""
    job = planning.Job(plan, STAGE, "months")
    run = notebook.Run(STAGE, check(STAGE, plan.parameters(STAGE, "months")))
    store.write_csv(run.path("csv"), pd.DataFrame({"component": ["1.2"], "effect": [0.5]}))
    store.write_npz(run.path("npz"), {"effects": np.eye(3)})
    store.write_json(run.path("circuit.json"), {"heads": [[1, 2]]})
    run.finish()
    nbformat.write(nbformat.v4.new_notebook(), job.notebook)
    return job


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DATA = [f"{STAGE}.csv", f"{STAGE}.npz", f"{STAGE}.circuit.json"]


@pytest.mark.parametrize(
    ("damage", "name"),
    [(how, name) for how in (cut, flip, Path.unlink) for name in DATA]
    + [(how, f"{STAGE}.{end}") for how in (cut, Path.unlink) for end in ("run.json", "ipynb")],
)
def test_a_damaged_result_is_made_anew(project, damage, name):
    job = finished(planned(project))
    job.forget_if_stale()
    assert job.record.is_file()
    damage(job.record.parent / name)
    job.forget_if_stale()
    assert not job.record.is_file()  # so Snakemake makes it, and all that was made from it


def test_a_damaged_input_is_made_anew_before_it_is_read(project, monkeypatch):
    plan, made = planned(project), []
    finished(plan)
    monkeypatch.setattr(execution, "execute", lambda *_: made.append(finished(plan)))
    later = "04_circuit_discovery"
    run = notebook.Run(later, check(later, plan.parameters(later, "months")))
    assert run.input(STAGE, "csv").is_file() and not made
    flip(run.input(STAGE, "circuit.json"))
    run.input(STAGE, "csv")
    assert len(made) == 1


def test_what_another_process_writes_meanwhile_is_not_trusted(project):
    """A process that outlived its killed run may write over the files of the next."""
    plan = planned(project)
    run = notebook.Run(STAGE, check(STAGE, plan.parameters(STAGE, "months")))
    store.write_text(run.path("txt"), "ours")
    run.path("txt").write_text("theirs")
    run.finish()
    assert not records.is_current(STAGE, run.path("run.json"))


def test_results_of_other_versions_and_weights_are_not_mixed_in(
    project, monkeypatch, tiny_directories, tmp_path
):
    weights = shutil.copytree(tiny_directories["gpt2"], tmp_path / "model") / "model.safetensors"
    job = finished(planned(project, weights.parent))
    assert records.is_current(STAGE, job.record)
    with monkeypatch.context() as other:
        other.setattr(fingerprint, "versions", lambda: {"torch": "0.1"})
        assert not records.is_current(STAGE, job.record)
    flip(weights)
    assert not records.is_current(STAGE, job.record)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, number):
    path = store.write_text(tmp_path / "a.txt", "old")

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        store.write_text(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "make room"), (errno.EROFS, "make it writable")]
)
def test_a_run_that_cannot_write_says_so_in_one_line(project, monkeypatch, capsys, number, remedy):
    def fail(*_):
        raise OSError(number, os.strerror(number), "results/x.json")

    plan = planned(project)
    monkeypatch.setattr(commands, "run", fail)
    assert commands.main(["run", "--params", str(plan.file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert remedy in error and "results/x.json" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [("size=64k", "No space left"), ("size=4k", "No space left"), ("ro", "Read-only file system")],
)
def test_a_stage_on_a_full_or_read_only_disk(project, tiny_directories, options, said):
    unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(project / "results")]
    (project / "results").mkdir()
    if not shutil.which("unshare") or subprocess.run([*unshare, *mount], stderr=-3).returncode:
        pytest.skip("no right to mount a file system")
    work = 'from seqcirc_utils import store\n\nstore.write_text(run.path("big"), "x" * 10**6)'
    write_notebook(project, STAGE, work=work)
    plan = planned(project, tiny_directories["gpt2"])
    output = planning.Job(plan, STAGE, "months").notebook
    command = [sys.executable, "-m", "seqcirc_utils", "stage", STAGE, "--task", "months"]
    command += ["--params", str(plan.file), "--output", str(output)]
    script = f'{" ".join(mount[:-1])} "$0" && {{ "$@"; echo $?; find "$0" -type f -size +0; }}'
    done = subprocess.run(
        [*unshare, "sh", "-c", script, mount[-1], *command],
        cwd=project,
        text=True,
        capture_output=True,
    )
    status, *left = done.stdout.split("\n")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert status == "2" and len(errors) == 1 and said in errors[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not [file for file in left if file and not file.endswith(".failed.ipynb")]


@pytest.mark.slow
def test_a_stage_whose_process_dies_says_so(project):
    write_notebook(project, STAGE, work="import os\n\nos._exit(1)")
    with pytest.raises(UserError, match="process died, mostly for want of memory") as caught:
        execution.execute(STAGE, {}, project / "out.ipynb", progress=False)
    assert "\n" not in str(caught.value) and not (project / "out.ipynb").exists()


def test_a_second_run_in_one_checkout_is_refused(project, monkeypatch, capsys):
    plan, ran = planned(project), []
    monkeypatch.setattr(commands, "run", lambda *_: ran.append(1))
    command = ["run", "--params", str(plan.file)]
    with commands.alone():
        assert commands.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: another run (begun by process {os.getpid()})") and not ran
    assert error.count("\n") == 1
    assert commands.main(command) == 0 and ran


def start(project, plan):
    """Start a real run, as a process group of its own, in poor surroundings."""
    command = [sys.executable, "-m", "seqcirc_utils", "run", "--params", str(plan.file)]
    return subprocess.Popen(
        [*command, "--until", STAGE, "--cores", "1"],
        cwd=project,
        env=os.environ | {"LC_ALL": "C", "HOME": "/proc/nowhere"},
        start_new_session=True,
        # What begins in the background, as CI may, ignores Ctrl-C, and so would this run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )


def kernel_of(run, project):
    """Wait until the stage is at work; return its process."""
    file = project / "at work"
    while not file.exists() or not file.read_text():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    process = psutil.Process(int(file.read_text()))
    file.unlink()
    return process


@pytest.mark.slow
def test_killed_and_interrupted_runs(tmp_path, monkeypatch, tiny_directories):
    """Also in a directory with an odd name, without UTF-8 and without a home."""
    project = make(tmp_path / "a b ü #1 'c'", monkeypatch)
    monkeypatch.delenv("SEQCIRC_CACHE", raising=False)
    work = (
        "import os, time\nfrom pathlib import Path\n\n"
        "Path('at work').write_text(str(os.getpid()))\n"
        "while not Path('go').exists():\n    time.sleep(0.1)"
    )
    write_notebook(project, STAGE, work=work)
    plan = planned(project, tiny_directories["gpt2"])
    job = planning.Job(plan, STAGE, "months")
    run = start(project, plan)
    try:
        kernel = kernel_of(run, project)
        os.kill(run.pid, signal.SIGKILL)  # it alone: its Snakemake works on
        run.wait()
        with pytest.raises(UserError, match=f"process {run.pid}"), commands.alone():
            pass
        os.killpg(run.pid, signal.SIGKILL)
        psutil.wait_procs([kernel], timeout=30)
        assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
        assert not job.record.exists() and not job.notebook.exists()

        run = start(project, plan)
        kernel_of(run, project)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        said = run.communicate(timeout=60)[1]
        assert run.returncode == 130
        assert said.endswith("error: interrupted; what was finished is kept.\n")
        assert not job.record.exists() and not job.notebook.exists()

        run = start(project, plan)
        kernel_of(run, project)
        run.terminate()  # it alone: the stage that runs is ended properly
        (project / "go").touch()
        said = run.communicate(timeout=120)[1]
        assert run.returncode == 130 and "error: interrupted" in said
        assert records.is_current(STAGE, job.record)
        assert json.loads(job.notebook.read_text())["cells"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def test_a_run_without_a_home_keeps_its_caches_in_the_checkout(project, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(project))
    commands._home()
    assert os.environ["HOME"] == str(project)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    commands._home()
    assert os.environ["HOME"] == str(project / ".snakemake" / "home")
    assert "/proc/nowhere cannot be written to" in capsys.readouterr().err
    Path.home().joinpath("x").touch()


def test_a_model_that_is_there_is_loaded_without_a_network(monkeypatch, tiny_directories):
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: asked.append(a))
    monkeypatch.setattr(socket.socket, "connect", lambda *a: asked.append(a))
    assert loading.load(str(tiny_directories["gpt2"]), "cpu").n_layers == 3
    assert not asked


@pytest.fixture
def build(project):
    """A finished build of a book of one page; returns what is left of it at the next."""
    page, html = project / "book" / "intro.md", project / "_build" / "html" / "intro.html"
    page.write_text("old")
    with building._whole_build(page.parent):
        store.write_text(html, "<p>old")

    def again(fail=False):
        with building._whole_build(page.parent):
            if fail:
                raise KeyboardInterrupt
            return html.is_file()

    again.page, again.project = page, project
    return again


def test_a_build_that_was_interrupted_is_begun_anew(build):
    assert build() is True
    with pytest.raises(KeyboardInterrupt):
        build(fail=True)
    assert build() is False


def test_the_page_of_what_is_gone_does_not_stay(build):
    """Sphinx leaves it, and a release would hold it."""
    other = build.page.with_name("other.md")
    other.write_text("more")
    assert build() is True
    other.unlink()
    assert build() is False
    store.write_text(build.project / "_build" / "html" / "intro.html", "<p>new")
    assert build() is True


def test_a_build_does_not_go_by_dates(build):
    build.page.write_text("new")
    os.utime(build.page, (YEAR_2000, YEAR_2000))
    assert build() is True
    assert build.page.stat().st_mtime > time.time() - 60  # Sphinx reads what is newer
    (marker,) = (build.project / "_build").glob(".*.json")
    os.utime(marker, (YEAR_2040, YEAR_2040))
    assert build() is False


def test_half_written_figures_are_not_published(project, monkeypatch):
    plan = planned(project)
    monkeypatch.setattr(planning.Plan, "jobs", lambda self: [finished(self)])
    figures = plan.directory("months") / "figures"
    store.write_text(figures / "a.svg", "<svg/>")
    (figures / ".b-x1y2.svg").write_text("<sv")
    monkeypatch.setattr(pages, "_toc", lambda plan: "")
    published = {path.name for path in pages.publish(plan)}
    assert "a.svg" in published and not [name for name in published if name.startswith(".")]


def test_every_fault_of_the_page_names_a_test_that_is_there():
    page = (ROOT / "book" / "faults.md").read_text("utf-8")
    named = re.findall(r"(?m)^(\d+)\. `(test_\w+)`$", page)
    faults = re.findall(r"(?m)^\| (\d+) \|", page)
    assert faults == [number for number, _ in named] == [str(i + 1) for i in range(len(faults))]
    known = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        known |= set(re.findall(r"(?m)^def (test_\w+)", file.read_text("utf-8")))
    assert {test for _, test in named} <= known
    own = set(re.findall(r"(?m)^def (test_\w+)", Path(__file__).read_text("utf-8")))
    assert own - {test for _, test in named} == {
        "test_every_fault_of_the_page_names_a_test_that_is_there"
    }
