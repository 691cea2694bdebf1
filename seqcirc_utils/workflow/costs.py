"""About how long a run will take, from costs measured once and from earlier runs of its jobs."""

import contextlib
import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow import progress, stages
from seqcirc_utils.workflow.planning import Job

CORES = (2, 4, 8, 16)
"""Numbers of cores that an estimate is given for."""


def shipped() -> dict[str, Any]:
    """What was measured: ``model``, and ``cpu_seconds`` of a job by stage and number of prompts.

    Nothing where the file is missing: all stages are then unknown.
    """
    with contextlib.suppress(UserError):
        return store.read_json(store.ROOT / "benchmarks" / "costs.json")
    return {"model": "", "cpu_seconds": {}}


def at_size(measured: Mapping[str, float], n_prompts: int) -> float | None:
    """CPU seconds of a job with so many prompts.

    Args:
        measured: Number of prompts, as text, or ``any``, to seconds.
        n_prompts: How many there are.

    Returns:
        What was measured at this size; else the point on the line through the two nearest sizes,
        since a job costs something without any prompt; None where only another one was measured.
    """
    if found := measured.get(str(n_prompts), measured.get("any")):
        return found
    near = sorted(map(int, measured), key=lambda size: abs(size - n_prompts))[:2]
    if len(near) < 2:
        return None
    slope, base = np.polyfit(near, [measured[str(size)] for size in near], 1)
    return max(0.0, float(base + slope * n_prompts))


def seconds(jobs: Sequence[Job], costs: Mapping[str, Any]) -> dict[Path, float]:
    """Seconds that jobs take: as they last took, else as measured for their number of prompts.

    Returns:
        Record of a job to its seconds on one core, without those that nothing is known of: a stage
        that was not measured at such a size, or another model.
    """
    last, known = progress.recorded(jobs, of_one_core=True), {}
    for job in jobs:
        if job.name in last:
            known[job.record] = last[job.name]
        elif job.plan.model == costs["model"] and job.stage in costs["cpu_seconds"]:
            n_prompts = job.plan.values.get("n_prompts", 4)  # the notebooks' own
            if found := at_size(costs["cpu_seconds"][job.stage], n_prompts):
                known[job.record] = found
    return known


def speedup(costs: Mapping[str, Any], threads: int) -> float:
    """How many times as fast a job is with so many threads: as measured for this many or fewer."""
    measured = {int(n): times for n, times in costs.get("speedup", {}).items()}
    return max((times for n, times in measured.items() if n <= threads), default=1.0)


def chains() -> dict[str, int]:
    """Stage to CPU seconds from its start to the end of the longest chain behind it.

    Of one job of each, as measured at the largest size; a stage never measured takes none.
    """
    costs, names = shipped()["cpu_seconds"], list(stages.STAGES)
    took = [max(costs.get(name, {}).values(), default=0) for name in names]
    needs = [[names.index(need) for need in stage.needs] for stage in stages.STAGES.values()]
    return dict(zip(reversed(names), reversed(_chains(took, needs)), strict=True))


def _chains(took: Sequence[Any], needs: Sequence[Sequence[int]]) -> list[Any]:
    """From each job's start to the end of the longest chain behind it, as :func:`makespan`."""
    chain = list(took)
    for i in reversed(range(len(took))):
        for need in needs[i]:
            chain[need] = max(chain[need], took[need] + chain[i])
    return chain


def makespan(
    took: Sequence[float],
    needs: Sequence[Sequence[int]],
    cores: int,
    threads: Sequence[int] | None = None,
) -> float:
    """Seconds until all jobs are done, the longest chain of waiting work first.

    Args:
        took: Seconds of each job.
        needs: For each job the places of those it waits for, all earlier ones.
        cores: How many there are.
        threads: How many of them each job takes, one by default.
    """
    threads = [1] * len(took) if threads is None else [min(n, cores) for n in threads]
    chain = _chains(took, needs)
    waiting, done, running, now = set(range(len(took))), set(), [], 0.0
    while waiting or running:
        ready = [i for i in waiting if done.issuperset(needs[i])]
        for i in sorted(ready, key=lambda i: -chain[i]):
            if threads[i] <= cores:
                heapq.heappush(running, (now + took[i], i))
                waiting.remove(i)
                cores -= threads[i]
        now, i = heapq.heappop(running)
        cores += threads[i]
        done.add(i)
    return now


def told(jobs: Sequence[Job]) -> str:
    """One line: how many jobs are to do, and about how long they take, upstream first given."""
    todo = [job for job in jobs if not job.is_current()]
    if not todo:
        return "Nothing is to be run: all results are there."
    costs = shipped()
    known = seconds(todo, costs)
    line = f"{len(todo)} of {len(jobs)} jobs are to be run"
    if unknown := sorted({job.stage for job in todo if job.record not in known}):
        line += f"; what these take with this model and size is not known: {', '.join(unknown)}"
    if known:
        places = {record: i for i, record in enumerate(known)}
        jobs = [job for job in todo if job.record in known]
        needs = [[places[path] for path in job.inputs if path in places] for job in jobs]
        took, times = list(known.values()), []
        for cores in CORES:
            threads = [stages.threads(stages.STAGES[job.stage], cores) for job in jobs]
            faster = [one / speedup(costs, n) for one, n in zip(took, threads, strict=True)]
            minutes = makespan(faster, needs, cores, threads) / 60
            times.append(f"{max(1, round(minutes))} min on {cores}")
        line += "; the others about" if unknown else "; about"
        line += f" {round(sum(took) / 60)} CPU-minutes: {', '.join(times)} cores"
    return line + "."
