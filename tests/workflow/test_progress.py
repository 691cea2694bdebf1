"""What a person sees while stages run."""

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

from seqcirc_utils.workflow import progress, records

BARS = (
    "Executing:  20%|██        | 5/25 [00:22<01:53,  5.70s/cell]\r"
    "Mean ablation:   7%|▋         | 20/300 [00:10<02:30,  1.90set/s]\r"
    "Mean ablation:  37%|███▋      | 110/300 [01:10<01:45,  1.80set/s]"
)


@dataclass
class Job:
    name: str
    notebook: Path
    record: Path


def test_the_last_bar_of_a_log_is_told(tmp_path):
    log = tmp_path / "03.log"
    assert progress.latest_bar(log) == ""
    log.write_text("Executing:   0%|          | 0/25 [00:00<?, ?cell/s]")
    assert progress.latest_bar(log) == ""
    log.write_text("x" * 9000 + BARS)
    assert progress.latest_bar(log) == "Mean ablation 37%, 01:45 left"


def test_a_bar_without_an_end_is_told(tmp_path):
    log = tmp_path / "04.log"
    log.write_text("Published sweep: 301trial [02:27,  1.47s/trial, forward sweep: 62 left, 84%]")
    assert progress.latest_bar(log) == "Published sweep 301, forward sweep: 62 left, 84%"
    log.write_text("Published sweep: 0trial [00:00, ?trial/s]")
    assert progress.latest_bar(log) == "Published sweep 0"


def test_the_line_tells_what_is_done_and_what_runs(tmp_path):
    jobs = [Job(f"0{i}", tmp_path / f"0{i}.ipynb", tmp_path / f"0{i}.run.json") for i in range(4)]
    jobs[0].record.write_text("{}")  # done before: not part of this run
    watch = progress.Watch(jobs, io.StringIO(), every=0.01)
    (tmp_path / "01.log").write_text(BARS)
    (tmp_path / "02.log").write_text("")
    with watch:
        time.sleep(0.1)
        assert watch.line().startswith("[0/3 stages, 0:00, at least 2 min left]")
        jobs[1].record.write_text("{}")
        line = watch.line()
    assert line.startswith("[1/3 stages") and "02 (starting)" in line
    assert "01 (Mean" not in line and "03" not in line
    assert "01 (Mean ablation 37%, 01:45 left)" in watch.stream.getvalue()


def test_the_line_tells_how_long_is_left(tmp_path):
    """From the seconds of each stage's last run, or of the same stage of another task."""
    names = ["01 a", "01 b", "02 a", "02 b"]
    jobs = [Job(n, tmp_path / f"{n}.ipynb", tmp_path / f"{n}.run.json") for n in names]
    for job, seconds in zip(jobs, [600, 1200, 60], strict=False):
        job.record.write_text(json.dumps({"seconds": seconds}))
        records.set_aside(job.record)
    watch = progress.Watch(jobs, io.StringIO())
    assert "4 stages, 0:00, about 32 min left]" in watch.line()  # 02 b as 02 a
    watch.begun -= 300  # two at once
    for job in jobs[:2]:
        watch.seen[job.name] = time.time() - 300
    assert ", about 11 min left]" in watch.line()  # 1320 s of work at a pace of two
    for job in jobs[:3]:
        job.record.write_text(json.dumps({"seconds": 300}))
    assert ", about 1 min left]" in watch.line()
    new = Job("03", tmp_path / "03.ipynb", tmp_path / "03.run.json")
    assert "at least 5 min left" in progress.Watch([*jobs, new], io.StringIO()).line()
    first = progress.Watch([new], io.StringIO())
    assert "left" not in first.line()
    (tmp_path / "03.log").write_text(BARS)  # the first run: no less than the bar says
    first.begun -= 60
    assert first.line().startswith("[0/1 stages, 1:00, at least 2 min left] 03 (Mean")


def test_nothing_to_do_shows_nothing(tmp_path):
    job = Job("01", tmp_path / "01.ipynb", tmp_path / "01.run.json")
    job.record.write_text("{}")
    stream = io.StringIO()
    with progress.Watch([job], stream, every=0.01):
        time.sleep(0.05)
    assert stream.getvalue() == ""
