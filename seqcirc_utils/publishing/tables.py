"""Pages made of tables: provenance, costs, benchmarks; and how tables of notebooks are shown."""

import re
from collections.abc import Mapping
from typing import Any

from bs4 import BeautifulSoup

from seqcirc_utils import store
from seqcirc_utils.workflow import stages
from seqcirc_utils.workflow.planning import DISCOVERY, Plan, with_needs


def one_header_row(html: str) -> str:
    """HTML whose tables name their index in the row of the columns' names.

    pandas gives the index's name a row of its own, which is empty but for it.
    """

    def joined(found: re.Match[str]) -> str:
        head = BeautifulSoup(found[0], "html.parser")
        rows = [row.find_all("th") for row in head.find_all("tr")]
        if len(rows) != 2 or len(rows[0]) != len(rows[1]):
            return found[0]
        pairs = list(zip(*rows, strict=True))
        if any(upper.get_text(strip=True) and lower.get_text(strip=True) for upper, lower in pairs):
            return found[0]
        for upper, lower in pairs:
            if lower.get_text(strip=True):
                upper.replace_with(lower)
        head.find_all("tr")[1].decompose()
        return str(head)

    return re.sub(r"(?s)<thead>.*?</thead>", joined, html)


def provenance(plan: Plan) -> str:
    """Return the page that tells how all results were made.

    Raises:
        UserError: for a run whose record is missing.
    """
    records = [store.read_json(job.record) for job in plan.jobs()]
    lines = ["# Provenance", "", "How every result of this book was made."]
    lines += ["", "## Runs", "", "| stage | task | seconds | CPU seconds | prompts | seed |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for record in records:
        prompts = record.get("n_prompts", record["parameters"].get("n_prompts", ""))
        taken = [record.get(name, "") for name in ("seconds", "cpu_seconds")]  # none if skipped
        cells = [record["stage"], record["task"] or "all", *taken, prompts, record["seed"]]
        lines.append(markdown_row(cells))
    for name, label in (("seconds", "stages one after the other"), ("cpu_seconds", "CPU time")):
        minutes = sum(record.get(name, 0) for record in records) / 60
        lines += ["", f"In all, {label}: {minutes:.0f} min."]
    lines += _discovery_costs(plan)
    facts = next((r["model"] for r in records if isinstance(r.get("model"), dict)), {})
    lines += _table("Model", {"name": plan.model} | facts)
    lines += _table("Versions", records[0]["versions"])
    for record in records:
        heading = f"Parameters of {record['stage']}"
        if record["task"]:
            heading += f", {record['task']}"
        lines += _table(heading, record["parameters"])
    return "\n".join(lines) + "\n"


def _discovery_costs(plan: Plan) -> list[str]:
    """Where the longest stage's time goes, as it measured itself."""
    taken = {}
    for job in plan.jobs():
        file = job.record.with_name(f"{DISCOVERY}.json")
        if job.stage == DISCOVERY and file.is_file():
            taken[job.task] = store.read_json(file).get("cpu_seconds", {})
    if not any(taken.values()):
        return []
    parts = dict.fromkeys(part for own in taken.values() for part in own)
    rows = [markdown_row([part, *(own.get(part, "") for own in taken.values())]) for part in parts]
    head = ["| part |" + "".join(f" {task} |" for task in taken), "|---|" + "---:|" * len(taken)]
    return ["", "## CPU seconds of the circuit discovery", "", *head, *rows]


def costs(plan: Plan, n_models: int = 10, n_tasks: int = 10, n_seeds: int = 20) -> str:
    """Return tables of what each stage took, and of what a sweep would take at this rate.

    Raises:
        UserError: for a run whose record is missing.
    """
    import pandas as pd

    rows = []
    for job in plan.jobs():
        taken = store.read_json(job.record)  # also of a page that was only drawn again since
        if not taken.get("skipped"):
            files = [*job.record.parent.glob(f"{job.stage}.*")]
            # All tasks together: as if the time grew with their number only.
            more = 1 if job.task else n_tasks / len(plan.tasks)
            row = {"stage": job.stage, "minutes": taken["seconds"] / 60}
            row |= {"memory": taken.get("memory_mb", float("nan")) / 1e3}
            row |= {"disk": sum(path.stat().st_size for path in files) / 1e6}
            row |= {"core_hours": max(taken["seconds"], taken["cpu_seconds"]) / 3600 * more}
            rows.append(row | {"jobs": n_models * n_seeds * (n_tasks if job.task else 1)})
    if not rows:
        return "Every stage was skipped: nothing was measured.\n"
    by_stage = pd.DataFrame(rows).groupby("stage")
    mean, most = by_stage.mean(), by_stage["memory"].max()
    lines = ["", "| stage | jobs | minutes | GB of memory, at most | MB on disk |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for name, row in mean.iterrows():
        cells = [name, by_stage.size()[name], f"{row['minutes']:.1f}", f"{most[name]:.1f}"]
        lines.append(markdown_row([*cells, f"{row['disk']:.1f}"]))
    lines += ["", f"{n_models} models × {n_tasks} tasks × {n_seeds} seeds:", ""]
    lines += ["| stages | jobs | core hours | hours on 100 cores | GB on disk |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for title, names in [
        ("up to the circuits", with_needs([DISCOVERY])),
        ("all", tuple(stages.STAGES)),
    ]:
        part = mean[mean.index.isin(names)]
        hours, disk = ((part["jobs"] * part[name]).sum() for name in ("core_hours", "disk"))
        cells = [title, f"{part['jobs'].sum():,.0f}", f"{hours:,.0f}", f"{hours / 100:,.1f}"]
        lines.append(markdown_row([*cells, f"{disk / 1e3:,.1f}"]))
    return "\n".join(lines) + "\n"


def paper_size() -> str:
    """Return what stages took at the paper's size, as `benchmarks/paper_size.py` measured it."""
    file = store.ROOT / "benchmarks" / "paper_size.json"
    if not file.is_file():
        return "Nothing was measured: `benchmarks/paper_size.py` does.\n"
    found = store.read_json(file)
    own = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    lines = [f"{found['device']}, {found['n_prompts']:,} prompts, {found['date']}, {own}:", ""]
    lines += ["| stage | task | seconds | GPU GB |", "|---|---|---:|---:|"]
    for row in found["rows"]:
        cells = [row["stage"], row["task"] or "all", f"{row['seconds']:.0f}", row["gpu_gb"] or ""]
        lines.append(markdown_row(cells))
    return "\n".join(lines) + "\n"


def screening() -> str:
    """Return how far screened effects are off, as `benchmarks/screening.py` measured it."""
    file = store.ROOT / "benchmarks" / "screening.json"
    if not file.is_file():
        return "Nothing was measured: `benchmarks/screening.py` does.\n"
    found = store.read_json(file)
    lines = [
        f"{found['components']} components, {found['prompts']} prompts, {found['exact']} of them "
        "for all components. Errors are those of mean effects, in shares of the model's score; "
        "three are root mean squares over the components that were not ablated on all prompts.",
        "",
        "| task | ablated on all prompts | largest error | error | of the first prompts alone "
        "| of the gradient alone | CPU s | CPU s, all exact |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        errors = [row[name] for name in ("largest", "rms", "rms_first", "rms_gradient")]
        cells = [row["task"], row["on_all"], *(f"{error:.2%}" for error in errors)]
        seconds = (row["cpu_seconds"], row["cpu_seconds_exact"])
        lines.append(markdown_row([*cells, *(f"{value:.0f}" for value in seconds)]))
    return "\n".join(lines) + "\n"


def benchmarks() -> str:
    """Return the tables of the benchmarks, from what `make bench` wrote last."""
    file = store.ROOT / "benchmarks" / "results.json"
    if not file.is_file():
        return "None were run: `make bench` does.\n"
    found = store.read_json(file)
    lines = []
    for key in ("searches", "growth", "memory"):
        rows = found.pop(key)
        if not rows:
            continue
        # One column per case: there are more measures than cases.
        first, *measures = rows[0]
        names = " | ".join(row[first] for row in rows)
        lines += ["", f"## {key.capitalize()}", ""]
        lines += [f"| {first} | {names} |", "|---|" + "---:|" * len(rows)]
        lines += [markdown_row([name, *(_short(row[name]) for row in rows)]) for name in measures]
    lines += _table("Machine", found["machine"] | found["versions"])
    return "\n".join(lines) + "\n"


def _short(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return value


def _table(heading: str, entries: Mapping[str, Any]) -> list[str]:
    rows = [markdown_row([name, value]) for name, value in entries.items()]
    return ["", f"## {heading}", "", "| name | value |", "|---|---|", *rows]


def markdown_row(cells: list[Any]) -> str:
    """One line of a Markdown table, its values as code."""
    texts = [str(c) for c in cells]
    first = texts[0].replace("|", r"\|")
    rest = [f"`{text}`".replace("|", r"\|") if text else "" for text in texts[1:]]
    return f"| {' | '.join([first, *rest])} |"
