"""Watching a long run: which stages run, how far each is, how many are left.

Every stage writes its progress bars into a log beside its notebook; this reads the logs' ends.
"""

import contextlib
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Protocol, TextIO

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow import records

# tqdm's bars, with a known end and without.
_BAR = re.compile(
    r"([A-Z][^:\r\n|]{2,40}):\s+"
    r"(?:(\d+)%\|[^|]*\|[^\[]*\[[^<]*<([^,\]]+)|(\d+)\w+ \[[^,\]]*,[^,\]]*(?:, ([^\]\r]*))?\])"
)
_LEFT = re.compile(r"(?:(\d+):)?(\d+):(\d+) left")


class Watched(Protocol):
    """What is known of a job: its name, its notebook (done when newer), its record."""

    @property
    def name(self) -> str:
        """Stage and task."""

    @property
    def notebook(self) -> Path:
        """The executed notebook."""

    @property
    def record(self) -> Path:
        """The run's record."""


def recorded(jobs: Iterable[Watched], *, of_one_core: bool = False) -> dict[str, float]:
    """Seconds that jobs took when they were last run, by name; of those that ever were.

    Args:
        jobs: The jobs.
        of_one_core: Of a job that had several, what all of them worked.
    """
    took = {}
    for job in jobs:
        for record in (records.last(job.record), job.record):
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                told = store.read_json(record)
                worked = float(told.get("cpu_seconds", 0)) if of_one_core else 0.0
                took[job.name] = max(float(told["seconds"]), worked)  # on a GPU a core waits
    return took


def latest_bar(log: Path) -> str:
    """The last progress bar of a log in short, as in ``Mean ablation 37%, 01:20 left``."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    bars = [bar for bar in _BAR.findall(text) if bar[0].strip() != "Executing"]
    if not bars:
        return ""
    label, percent, left, count, note = bars[-1]
    if count:
        return f"{label.strip()} {count}" + (f", {note}" if note else "")
    return f"{label.strip()} {percent}%" + (f", {left} left" if "?" not in left else "")


class Watch:
    """Shows a run's state while a ``with`` block lasts: in place on a terminal, else line by line.

    Args:
        jobs: All jobs of the run.
        stream: Where to write; standard error by default.
        every: Seconds between lines when the stream is not a terminal.
    """

    def __init__(
        self, jobs: Sequence[Watched], stream: TextIO | None = None, every: float = 30
    ) -> None:
        self.jobs, self.stream = jobs, stream or sys.stderr
        self.took = recorded(jobs)
        self.seen: dict[str, float] = {}  # when a running job was first seen
        self.live = self.stream.isatty()
        self.every = 1.0 if self.live else every
        self.begun = time.time()
        self.todo = [job for job in jobs if not job.record.is_file()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Watch":
        if self.todo:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.live and self.todo:
            self.stream.write("\r\x1b[K")

    def line(self) -> str:
        """One line: stages done, time taken, time left as far as is known, and what runs now."""
        now = time.time()
        done = [job for job in self.todo if job.record.is_file()]
        self.took |= recorded(job for job in done if self.seen.pop(job.name, None))
        running = []
        for job in self.todo:
            log = job.notebook.with_suffix(".log")
            begun = log.is_file() and log.stat().st_mtime >= self.begun - 1
            if begun and job not in done:
                self.seen.setdefault(job.name, now)
                running.append(f"{job.name} ({latest_bar(log) or 'starting'})")
        minutes, seconds = divmod(int(now - self.begun), 60)
        state = (
            f"{len(done)}/{len(self.todo)} stages, {minutes}:{seconds:02}{self._left(now, running)}"
        )
        more = [f"and {len(running) - 4} more"] if len(running) > 4 else []  # on a cluster
        return f"[{state}] " + "; ".join(running[:4] + more)

    def _left(self, now: float, running: Sequence[str]) -> str:
        """Time left, judged by what each stage took the last time, or took for another task.

        While there are stages of which nothing is known, the longest bar's own estimate is a bound.
        """
        work, past, known = 0.0, 0.0, True
        same = defaultdict(list)
        for name, seconds in self.took.items():
            same[name.split()[0]].append(seconds)
        for job in self.todo:
            others = same.get(job.name.split()[0])
            if not others:
                known = False
                continue
            need = self.took.get(job.name) or fmean(others)
            work += need
            if job.record.is_file():
                past += need
            elif job.name in self.seen:
                past += min(need, now - self.seen[job.name])
        bars = [] if known else [t for line in running for t in _LEFT.findall(line)]
        bound = max((3600 * int(h or 0) + 60 * int(m) + int(s) for h, m, s in bars), default=0)
        if not work > past and not bound:
            return ""
        # Several at once, or a slower machine: the pace so far tells.
        pace = past / (now - self.begun) if past > 60 else 1
        minutes = max(1, round(max((work - past) / pace, bound) / 60))
        return f", {'about' if known else 'at least'} {minutes} min left"

    def _show(self) -> None:
        while not self._stop.wait(self.every):
            line = self.line()
            self.stream.write(f"\r\x1b[K{line[:160]}" if self.live else f"{line}\n")
            self.stream.flush()
