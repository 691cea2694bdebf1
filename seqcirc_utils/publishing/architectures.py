"""The table of architectures: what was right, and what does not apply, from `make proof`."""

from typing import Any

from seqcirc_utils import store
from seqcirc_utils.publishing.tables import markdown_row


def architectures() -> str:
    """Return the table and the reasons, from what `make proof` wrote last."""
    file = store.ROOT / "benchmarks" / "architectures.json"
    rows = store.read_json(file)["rows"] if file.is_file() else {}
    if not rows:
        return "None were tried: `make proof` does.\n"
    columns = list(dict.fromkeys(c for row in rows.values() for c in row["cells"]))
    lines = [f"| architecture | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [_shown(row["cells"].get(c, {})) for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## What does not apply, and why", ""]
    for name, row in rows.items():
        for column, cell in row["cells"].items():
            lines += [f"- {name}, {column}, {part}: {why}" for part, why in _reasons(cell)]
    lines += ["", "## How each was made", ""]
    lines += ["| architecture | configuration | parameters | accuracy | CPU s | date | versions |"]
    lines += ["|---|---|---:|---:|---:|---|---|"]
    for name, row in rows.items():
        versions = ", ".join(f"{package} {v}" for package, v in row["versions"].items())
        accuracy = f"{row['accuracy']:.0%}" if "accuracy" in row else ""
        cells = [name, row["configuration"], row.get("parameters", ""), accuracy]
        lines.append(markdown_row([*cells, f"{row['seconds']:.0f}", row["date"], versions]))
    return "\n".join(lines) + "\n"


def _shown(cell: dict[str, Any]) -> str:
    verdict = cell.get("verdict", "not tried")
    if verdict == "refused" and "runs" in cell:  # some of many parts, and the rest right
        return f"right; {len(cell['why'])} refused"
    return f"**{verdict}**" if verdict in ("wrong", "crashed") else verdict


def _reasons(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """Parts that are not right, those of one reason together; text that no Markdown changes."""
    by_reason: dict[str, list[str]] = {}
    for part, why in cell["why"].items():
        by_reason.setdefault(why, []).append(part)
    return [
        (", ".join(f"`{part}`" for part in parts), f"`{' '.join(why.replace('`', '').split())}`")
        for why, parts in by_reason.items()
    ]
