"""Watching a long run: which stages run, how far each is, how many are left.

Every stage writes its progress bars into a log beside its notebook; this reads the logs' ends.
"""

import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

# tqdm's bars, with a known end and without.
_BAR = re.compile(
    r"([A-Z][^:\r\n|]{2,40}):\s+"
    r"(?:(\d+)%\|[^|]*\|[^\[]*\[[^<]*<([^,\]]+)|(\d+)\w+ \[[^,\]]*,[^,\]]*(?:, ([^\]\r]*))?\])"
)


class Watched(Protocol):
    """What is known of a job: its name, its notebook (done when newer), its record."""

    name: str
    notebook: Path
    record: Path


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
        """One line: stages done, time taken, and what runs now."""
        done = sum(job.record.is_file() for job in self.todo)
        minutes, seconds = divmod(int(time.time() - self.begun), 60)
        running = []
        for job in self.todo:
            log = job.notebook.with_suffix(".log")
            begun = log.is_file() and log.stat().st_mtime >= self.begun - 1
            if begun and not job.record.is_file():
                running.append(f"{job.name} ({latest_bar(log) or 'starting'})")
        more = [f"and {len(running) - 4} more"] if len(running) > 4 else []  # on a cluster
        text = "; ".join(running[:4] + more)
        return f"[{done}/{len(self.todo)} stages, {minutes}:{seconds:02}] " + text

    def _show(self) -> None:
        while not self._stop.wait(self.every):
            line = self.line()
            self.stream.write(f"\r\x1b[K{line[:160]}" if self.live else f"{line}\n")
            self.stream.flush()
