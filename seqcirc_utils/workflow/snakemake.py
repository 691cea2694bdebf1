"""Handing the stages to Snakemake."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.zoo import GPUS
from seqcirc_utils.workflow import surroundings
from seqcirc_utils.workflow.parameters import check
from seqcirc_utils.workflow.planning import Job, Plan, to_config

_DEV = Path("/dev")
_DRIVERS = ("nvidia*", "nvhost*", "dxg", "kfd")
"""Devices of CUDA (also on Jetson, on Windows' Linux) and of ROCm."""


def gpus(job: Job) -> int:
    """How many GPUs a job wants: one if its ``device`` names one, or ``auto`` would find one."""
    device = check(job.stage, job.plan.parameters(job.stage, job.task)).get("device", "cpu")
    if device != "auto":
        return int(device in GPUS)
    if not may_have_gpu():
        return 0
    import torch

    return int(any(getattr(torch, kind).is_available() for kind in GPUS))


def may_have_gpu() -> bool:
    """Whether torch could find a GPU; to import it takes seconds, and to plan needs no more."""
    return sys.platform != "linux" or any(any(_DEV.glob(name)) for name in _DRIVERS)


def read_profile(name: str) -> tuple[Path, str]:
    """Return a profile's directory and executor, or say what is missing before anything is run."""
    path = Path(name) if name else store.ROOT / "profiles" / "local"
    try:
        values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")) or {}
        executor = str(values.get("executor", "local"))
    except FileNotFoundError:
        there = sorted(store.ROOT.glob("profiles/*/config.yaml"))
        there = ", ".join(str(p.parent.relative_to(store.ROOT)) for p in there)
        raise UserError(f"{path} has no config.yaml: there are the profiles {there}.") from None
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path / 'config.yaml'} cannot be read as YAML: {said}") from None
    own = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor not in ("local", "dryrun", "touch") and find_spec(own) is None:
        raise UserError(
            f"{path} wants the executor {executor!r}, which is not installed: "
            f"pip install {own.replace('_', '-')}."
        )
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise UserError(f"{path} wants SLURM, but there is no sbatch: use it on a login node.")
    return path, executor


def run(
    plans: Sequence[Plan],
    cores: int | None,
    until: Sequence[str] = (),
    profile: str = "",
    *more: str,
) -> None:
    """Hand plans to Snakemake as one graph, and wait for it.

    Args:
        plans: From one parameters file.
        cores: How many cores to use at most; as many as the profile says by default.
        until: Only these stages and what they need.
        profile: Directory of a Snakemake profile.
        more: Further options of Snakemake.

    Raises:
        UserError: for a profile that cannot be used, or if a stage failed.
    """
    names = {plan.model for plan in plans}
    # Files, not rules with --until: what waits for a rule that is named there is never started.
    targets = [
        os.path.relpath(path, store.ROOT)
        for plan in plans
        for job in plan.jobs()
        if job.stage in until
        for path in (job.notebook, job.record)
    ]
    command = [sys.executable, "-m", "snakemake", *targets]
    command += ["--snakefile", str(store.ROOT / "Snakefile")]
    command += ["--directory", str(store.ROOT), "--rerun-incomplete"]
    command += ["--nolock"]  # a killed run leaves Snakemake's own lock behind; see alone()
    where, executor = read_profile(profile)
    # No other profile, such as the user's own: it may set anything.
    command += ["--workflow-profile", str(where.resolve()), "--profile", "none"]
    if executor == "local":  # no more jobs at once than the memory holds, and one on a GPU
        memory = surroundings.memory() // 10**6
        if (
            yaml.safe_load((where / "config.yaml").read_text(encoding="utf-8")).get("cores")
            == "all"
        ):
            cores = cores or surroundings.cores()  # Snakemake's own "all" knows no quota
        command += ["--resources", f"mem_mb={memory}", "gpu=1"]
    command += ["--cores", str(cores)] if cores else []
    command += ["--rerun-triggers", "mtime", "params", "input"]
    command += ["--quiet", "host", "reason", "progress"]
    file = os.path.relpath(plans[0].file, store.ROOT)
    command += ["--config", to_config(file, names.pop() if len(names) == 1 else ""), *more]
    snakemake = subprocess.Popen(command, cwd=store.ROOT, close_fds=False)
    try:
        failed = snakemake.wait()
    except KeyboardInterrupt:
        # Ctrl-C has reached it as well; if only we were told, this ends it after the running stage.
        snakemake.terminate()
        snakemake.wait()
        raise
    if failed:
        raise UserError("not every stage ran: the lines above name the failed one and its log.")
