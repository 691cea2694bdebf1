"""What a user's settings, a container or a slow machine must not change."""

import getpass
import os
import pwd
import subprocess
import sys

import pytest
import yaml
from stage_project import make, parameters, write_notebook

from seqcirc_utils import commands, store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow import execution, planning, snakemake, surroundings


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make(tmp_path / "project", monkeypatch)


@pytest.mark.parametrize(
    ("told", "files"),
    [
        ("0::/a/b", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}),
        ("0::/not/there", {"cpu.max": "250000 100000"}),
        (
            "3:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_the_limits_of_a_container_hold(tmp_path, monkeypatch, told, files):
    own = tmp_path / "own"
    monkeypatch.setattr(surroundings, "_CGROUPS", tmp_path)
    monkeypatch.setattr(surroundings, "_OWN", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    whole = surroundings.memory()
    assert surroundings.cores() == 64 and whole > 10**8
    own.write_text(told + "\n" + told.replace("cpu,cpuacct", "memory") + "\n")
    version_1 = "cpu.cfs" in str(files)
    limit = "memory/a/memory.limit_in_bytes" if version_1 else f"{min(files)[:-7]}memory.max"
    for name, text in (files | {limit: "50000000"}).items():
        store.write_text(tmp_path / name, text + "\n")
    assert surroundings.cores() == 2 and surroundings.memory() == 50000000
    store.write_text(tmp_path / limit, "9223372036854771712" if version_1 else "max")
    assert surroundings.memory() == whole


def test_snakemake_and_children_get_stated_surroundings(project, monkeypatch):
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(sys, "base_prefix", "/usr/nowhere")  # a virtual environment
    monkeypatch.setattr(surroundings, "cores", lambda: 3)
    plan, asked = planning.read_plan(parameters(project)), []

    class Done:
        def __init__(self, command, **_):
            asked.extend(command)

        def wait(self):
            return 0

    monkeypatch.setattr(snakemake.subprocess, "Popen", Done)
    monkeypatch.setattr(commands, "_book", lambda given: snakemake.run([plan], None))
    assert commands.main(["book"]) == 0
    assert "SNAKEMAKE_PROFILE" not in os.environ and os.environ["PYTHONNOUSERSITE"] == "1"
    assert os.environ["PYTHONPATH"] == str(project)
    assert asked[asked.index("--profile") + 1] == "none"
    assert asked[asked.index("--cores") + 1] == "3"
    (project / "mine").mkdir()
    (project / "mine" / "config.yaml").write_text(yaml.safe_dump({"cores": 1}))
    asked.clear()
    snakemake.run([plan], None, profile=str(project / "mine"))
    assert "--cores" not in asked


def test_a_user_without_an_account_gets_a_name(monkeypatch):
    """As in a container that was started with a user's number."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("PYTHONPATH", "")  # given back afterwards
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    surroundings.clean()
    assert getpass.getuser() == f"uid{os.getuid()}"
    del os.environ["LOGNAME"]


def test_make_hands_on_nothing_of_the_users_own():
    own = ["PYTHONPATH", "PYTHONSTARTUP", "SNAKEMAKE_PROFILE", "PIP_USER", "PIP_TARGET"]
    done = subprocess.run(
        ["make", "-f", "-", "probe"],
        input="include Makefile\nprobe:\n\t@env\n",
        cwd=store.ROOT,
        env=os.environ | dict.fromkeys(own, "1") | {"PIP_INDEX_URL": "kept"},
        text=True,
        capture_output=True,
    )
    given = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert not set(own) & set(given) and given["PIP_INDEX_URL"] == "kept", done.stderr
    assert given["PYTHONNOUSERSITE"] == "1"


@pytest.mark.slow
def test_a_kernel_reads_no_startup_files_and_may_start_slowly(project, monkeypatch):
    startup = project / "ipython" / "profile_default" / "startup"
    store.write_text(startup / "mine.py", "n_prompts = 99\nraise SystemExit")
    monkeypatch.setenv("IPYTHONDIR", str(project / "ipython"))
    work = "import os\n\nassert 'SystemExit' not in str(os.listdir(os.environ['IPYTHONDIR']))\n"
    work += f"assert os.environ['IPYTHONDIR'] != {str(project / 'ipython')!r}"
    write_notebook(project, "03_patching", work=work)
    execution.execute("03_patching", {}, project / "out.ipynb", progress=False)
    assert not list((project / "ipython").rglob("history.sqlite"))
    assert execution._START >= 600
    (project / "sitecustomize.py").write_text("import time\n\ntime.sleep(4)")
    monkeypatch.setattr(execution, "_START", 2)
    with pytest.raises(UserError, match="03_patching failed: .*2 seconds"):
        execution.execute("03_patching", {}, project / "out.ipynb", progress=False)
