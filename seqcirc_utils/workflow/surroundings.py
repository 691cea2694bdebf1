"""What a run's children are given: a stated environment, and what a container allows them."""

import getpass
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from seqcirc_utils import store

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def clean() -> None:
    """Free this process's children from what a user's settings would change in their results.

    In a virtual environment that holds all that is needed, only this project is added to the path.
    A user without an account gets a name, which Snakemake asks for.
    """
    for name in list(os.environ):
        if name.startswith("SNAKEMAKE_") or name in ("PYTHONSTARTUP", "PYTHONINSPECT"):
            del os.environ[name]
    os.environ["PYTHONNOUSERSITE"] = "1"
    if sys.prefix != sys.base_prefix:
        os.environ["PYTHONPATH"] = str(store.ROOT)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container's user that no account belongs to
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def cores() -> int:
    """How many cores this process may use: those it is bound to, within its cgroups' quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [bound or 1]
    for group in _groups("cpu"):
        quota = _numbers(group / "cpu.max")  # version 2: microseconds, of so many
        if not quota:
            quota = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:
            quotas.append(max(1, quota[0] // quota[1]))
    return min(quotas)


def memory() -> int:
    """How much memory this process may use, in bytes: the machine's, within its cgroups' limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            limits += _numbers(group / name)
    return min(limits)


def _groups(controller: str) -> Iterator[Path]:
    """The directories that limit this process: its own, and those around it."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controller if controllers else _CGROUPS
        own = root / path.lstrip("/")
        # Inside a container the path may be the host's, and only the root is there.
        yield from (group for group in (own, *own.parents) if group.is_relative_to(root))


def _numbers(file: Path) -> list[int]:
    """The numbers of a cgroup's file; none where there is no limit."""
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [int(word) for word in words] if all(w.lstrip("-").isdigit() for w in words) else []
