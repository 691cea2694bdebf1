"""Compare two trees of results: every number of every file, whatever order they were made in.

    python tests/compare_results.py BEFORE AFTER [--tolerance 1e-5] [--renamed circuit=04_….circuit]

Tells the largest difference, and what stands in one tree only. Times, versions and fingerprints are
left out. Exit status 1 when a number differs by more than the tolerance or is missing.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PASSING = {"seconds", "cpu_seconds", "timestamp", "versions", "library", "drawing", "key", "files"}


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a JSON value, with its path."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in PASSING:
                yield from numbers(part, f"{path}/{name}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from numbers(part, f"{path}/{i}")
    else:
        yield path, value


def leaves(file: Path) -> dict[str, Any]:
    """Every value of a result file, by where it stands."""
    if file.suffix == ".json":
        return dict(numbers(json.loads(file.read_text(encoding="utf-8"))))
    if file.suffix == ".csv":
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        kept = [c for c in table if c not in PASSING]
        return {f"/{c}/{i}": v for c in kept for i, v in enumerate(table[c])}
    with np.load(file, allow_pickle=False) as arrays:
        return {
            f"/{name}/{i}": v for name in arrays.files for i, v in enumerate(arrays[name].ravel())
        }


def difference(a: Any, b: Any) -> float:
    """How far two values are apart; texts that are no numbers are equal or infinitely far."""
    try:
        x, y = (float(v) if v != "" else math.nan for v in (a, b))
    except (TypeError, ValueError):
        return 0.0 if str(a) == str(b) else math.inf
    if math.isnan(x) or math.isnan(y) or math.isinf(x) or math.isinf(y):
        return 0.0 if str(x) == str(y) else math.inf
    return abs(x - y) / max(1.0, abs(x), abs(y))


def main() -> int:
    """Compare and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW")
    given = parser.parse_args()
    renamed = dict(pair.split("=") for pair in given.renamed)
    worst, bad, compared = (0.0, "nothing"), 0, 0
    for old in sorted(given.before.rglob("*")):
        if old.suffix not in (".json", ".csv", ".npz") or old.name.endswith(".run.json"):
            continue
        place = old.relative_to(given.before)
        new = given.after / place.with_name(renamed.get(old.name, old.name))
        if not new.is_file():
            print(f"only before: {place}")
            bad += 1
            continue
        ours, theirs = leaves(old), leaves(new)
        apart = {n: difference(ours[n], theirs[n]) for n in ours.keys() & theirs.keys()}
        lost = [name for name in ours if name not in theirs]
        if lost:
            print(f"{place}: {len(lost)} values only before, as {lost[0]}")
            bad += 1
        compared += len(apart)
        if apart:
            far, name = max((far, name) for name, far in apart.items())
            said = f"{place}{name}: {ours[name]} and {theirs[name]}"
            worst = max(worst, (far, said))
            if far > given.tolerance:
                n_far = sum(far > given.tolerance for far in apart.values())
                print(f"{n_far} of {len(apart)} values apart, most by {far:.2g}: {said}")
                bad += 1
    print(f"{compared} values compared; the largest difference is {worst[0]:.2g} ({worst[1]}).")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
