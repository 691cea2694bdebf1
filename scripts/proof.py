"""Which architectures work? Each is trained to do the tasks, and held to slow, plain passes.

A tiny model of each architecture is trained in seconds; what is asked of it are the functions of
``tests/models/test_architectures.py``. A cell of the table is *right* (it agrees with whole passes
of the model), *refused* with its reason, *wrong* or *crashed*. The last column runs every stage
that loads the model, with its figures, all in this process. A row is written when it is done; rows
made by the present sources and versions are kept, so that a run that was stopped goes on.

    python scripts/proof.py [ARCHITECTURE ...]
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import tiny_models
import tokenizers_made
import torch
import transformers
import yaml
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output

from seqcirc_utils import store
from seqcirc_utils.ablation import replay
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing
from seqcirc_utils.workflow import execution, records, stages
from seqcirc_utils.workflow.fingerprint import versions
from seqcirc_utils.workflow.parameters import check, declared
from seqcirc_utils.workflow.planning import Job, Plan, read_plan

sys.path += [str(store.ROOT / "tests" / "models")]

import test_architectures as plain  # noqa: E402

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **plain.CONFIGS,
    "llama": ("LlamaConfig", plain.SHARED),
    "qwen3": ("Qwen3Config", plain.SHARED | {"head_dim": 8}),
    "mistral": ("MistralConfig", plain.SHARED | {"sliding_window": 8}),
    "neo": (
        "GPTNeoConfig",
        {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "window_size": 8, **plain.SIZES}
        | {"attention_types": [[["global", "local", "global"], 1]], "max_position_embeddings": 64},
    ),
    "phi3": ("Phi3Config", plain.SHARED | {"num_key_value_heads": 4, "pad_token_id": 0}),
    "stablelm": ("StableLmConfig", plain.SHARED),
    "gptj": ("GPTJConfig", plain.OLD | {"rotary_dim": 4}),
    "starcoder2": ("Starcoder2Config", plain.SHARED),
    "smollm3": ("SmolLM3Config", plain.SHARED | {"pad_token_id": 0}),
    "olmo3": ("Olmo3Config", plain.SHARED | {"pad_token_id": 0, "sliding_window": 8}),
    "cohere2": (
        "Cohere2Config",
        plain.SHARED | {"logit_scale": 0.25, "pad_token_id": 0, "sliding_window": 8},
    ),
    "nemotron": ("NemotronConfig", plain.SHARED),
    "glm4": ("Glm4Config", plain.SHARED | {"head_dim": 8, "pad_token_id": 0}),
}
CONFIGS["gemma2"] = (  # a cap that lets a model be sure, as the released ones have it
    "Gemma2Config",
    plain.GEMMA | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
)
TOKENIZERS = {"qwen2": tokenizers_made.gpt2_tokenizer}  # transformers reads none but its own
TABLE = store.ROOT / "benchmarks" / "architectures.json"
TASKS = ["digits", "number_words", "months"]
# The smallest run that goes through every section of every stage.
PARAMS = {
    "tasks": ["digits", "months"],
    "templates": ["born"],
    "pool_templates": ["born"],
    "lengths": [4],
    "factors": [0.0, 2.0],
    "probes": ["months", "plus_2"],
    **{"n_prompts": 4, "n_means": 8, "n_top": 6, "n_pairs": 1, "n_repeats": 1, "n_edge_prompts": 2},
    **dict.fromkeys(("n_null", "n_random", "n_matched", "n_draws", "n_key", "n_examples"), 2),
    **{"n_items": 8, "n_tested": 4, "seed": 0, "device": "cpu"},
}
COLUMNS: dict[str, tuple[Callable[[Any], None], ...]] = {
    "evaluator": (plain.ablations, plain.estimates, plain.mlp_writes),
    "attribution sums": (plain.direct, plain.positions),
    "paths": (plain.paths,),
    "edges": (plain.edges,),
    "roles": (plain.values_alone, plain.sizes, plain.direct_writes, plain.lenses),
}
ORDER = ("right", "refused", "wrong", "crashed")
LEAST = 0.9
"""Accuracy on unseen prompts below which a model does not do the tasks."""


def verdict(parts: Mapping[str, Callable[[], None]]) -> dict[str, Any]:
    """The worst that happened in a cell's parts, and what each said."""
    found, why = ["right"], {}
    for name, part in parts.items():
        try:
            part()
        except UserError as error:
            found.append("refused")
            why[name] = str(error)
        except AssertionError as error:
            found.append("wrong")
            why[name] = " ".join(str(error).split())[:300] or "an assertion failed"
        except Exception as error:  # whatever it is, the other cells go on
            found.append("crashed")
            why[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return {"verdict": max(found, key=ORDER.index), "why": why}


def same_logits(directory: Path, model: loading.Model, tokens: torch.Tensor) -> None:
    """Hold the loaded model to the one that transformers reads, but for a constant."""
    network = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager"
    )
    with torch.inference_mode():
        theirs, ours = network.eval()(tokens).logits, model.bridge(tokens)
    theirs, ours = (x - x.mean(-1, keepdim=True) for x in (theirs, ours))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def a_case(name: str, directory: Path) -> SimpleNamespace:
    """What the tests of architectures ask for: a model, prompts, and replacements."""
    model = loading.load(str(directory), "cpu")
    sets = drawing.prompt_sets(model, "months", n_prompts=6, n_means=10)
    prompts, corrupted = sets.evaluation[range(3)], sets.corrupted[range(3)]
    new = replay.record(model, corrupted).activations
    return SimpleNamespace(
        name=name, path=directory, model=model, prompts=prompts, corrupted=corrupted, new=new
    )


def a_shell() -> InteractiveShell:
    """What runs cells in this process and draws their figures."""
    shell = InteractiveShell.instance()
    shell.display_formatter.active_types = shell.display_formatter.format_types
    select_figure_formats(shell, {"svg"})
    return shell


def run_stage(shell: InteractiveShell, job: Job) -> dict[str, str]:
    """Run one notebook in this process; return what it found not to apply.

    Raises:
        Exception: whatever the notebook raises, ``CannotDo`` for a task that is skipped.
    """
    given = job.plan.parameters(job.stage, job.task)
    shell.reset(new_session=False)
    for cell in nbformat.read(stages.notebook(job.stage), as_version=4).cells:
        if cell.cell_type != "code":
            continue
        with capture_output():
            result = shell.run_cell(cell.source, silent=True)
            if "parameters" in cell.metadata.get("tags", []):
                shell.push(given)
            elif result.success:  # draw what the page would show
                shell.display_formatter.format(result.result)
        if isinstance(result.error_in_exec, CannotDo):
            reason = str(result.error_in_exec)
            execution.record_skipped(job.stage, check(job.stage, given), reason)
        result.raise_error()
    found = job.record.with_name(f"{job.stage}.json")
    return store.read_json(found).get("missing", {}) if found.is_file() else {}


def whole_run(shell: InteractiveShell, plan: Plan) -> tuple[dict[str, Any], dict[str, float]]:
    """Every stage that loads the model; the cell, and the seconds of each stage."""
    parts, missing, seconds = {}, {}, {}
    for job in plan.jobs():
        if "device" not in declared(job.stage):  # its models are built by hand
            continue

        def part(job: Job = job) -> None:
            before = time.process_time()
            sections = run_stage(shell, job)
            seconds[job.name] = round(time.process_time() - before, 1)
            missing.update({f"{job.stage}: {s}": reason for s, reason in sections.items()})
            if records.skipped(job.record) or not job.is_current():
                raise AssertionError("its results are not current")

        parts[job.name] = part
    cell = verdict(parts)
    cell["verdict"] = max(cell["verdict"], "refused" if missing else "right", key=ORDER.index)
    return cell | {"why": cell["why"] | missing, "runs": len(parts)}, seconds


def prove(shell: InteractiveShell, name: str, root: Path) -> dict[str, Any]:
    """One row of the table."""
    kind, options = CONFIGS[name]
    directory = root / name.replace(" ", "-")
    shutil.rmtree(directory, ignore_errors=True)
    longer = {k: 256 for k in ("n_positions", "max_position_embeddings") if k in options}
    row: dict[str, Any] = {"configuration": kind}
    began, cells = time.process_time(), {}

    def load() -> None:
        config = getattr(transformers, kind)(**options | longer)
        tokenizer = TOKENIZERS.get(name, tiny_models.words)()
        row["accuracy"] = tiny_models.train(config, directory, TASKS, tokenizer, asked=["months"])
        case = a_case(name, directory)
        same_logits(directory, case.model, case.prompts.tokens)
        row["parameters"] = case.model.facts.n_parameters
        assert row["accuracy"] >= LEAST, f"it answers {row['accuracy']:.0%} of unseen prompts"
        kept.append(case)

    kept: list[SimpleNamespace] = []
    cells["loads"] = verdict({"loads": load})
    if kept:
        for column, functions in COLUMNS.items():
            parts = {f.__name__: lambda f=f: f(kept[0]) for f in functions}
            cells[column] = verdict(parts)
        file = root / "proof.yml"  # results are named by the file
        file.write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
        plan = read_plan(file, str(directory))
        shutil.rmtree(plan.directory(), ignore_errors=True)
        cells["whole run"], row["stage seconds"] = whole_run(shell, plan)
    row |= {"cells": cells, "seconds": round(time.process_time() - began, 1)}
    return row


def sources() -> str:
    """A hash of all that decides a row."""
    files = [*(store.ROOT / "seqcirc_utils").rglob("*.py"), *stages_files(), Path(__file__)]
    files += [Path(tiny_models.__file__), Path(plain.__file__)]
    text = "".join(store.sha256(file) for file in sorted(files)) + json.dumps(versions())
    return hashlib.sha256(text.encode()).hexdigest()


def stages_files() -> list[Path]:
    """The notebooks."""
    return [stages.notebook(stage) for stage in stages.STAGES]


def main(arguments: list[str]) -> int:
    """Fill what is missing of the table, or the rows asked for; tell what is wrong."""
    for name in arguments:
        if name not in CONFIGS:
            print(f"error: no architecture {name!r}: {', '.join(CONFIGS)}.", file=sys.stderr)
            return 2
    rows = store.read_json(TABLE)["rows"] if TABLE.is_file() else {}
    made = sources()
    shell = a_shell()
    root = store.ROOT / "_build" / "proof"
    root.mkdir(parents=True, exist_ok=True)
    names = arguments or [n for n in CONFIGS if rows.get(n, {}).get("sources") != made]
    for i, name in enumerate(names):
        row = prove(shell, name, root)
        now = datetime.now(UTC).date().isoformat()
        rows[name] = row | {"date": now, "versions": versions(), "sources": made}
        ordered = {n: rows[n] for n in CONFIGS if n in rows}
        store.write_json(TABLE, {"rows": ordered})
        said = ", ".join(f"{column} {cell['verdict']}" for column, cell in row["cells"].items())
        print(f"{i + 1}/{len(names)} {name} ({row['seconds']:.0f} CPU s): {said}", flush=True)
    bad = [
        f"{name}: {column}: {cell['verdict']}: {cell['why']}"
        for name, row in rows.items()
        for column, cell in row["cells"].items()
        if cell["verdict"] in ("wrong", "crashed")
    ]
    print(*bad, sep="\n", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
