"""How fast the circuit searches are beside the plain procedure; `make bench` runs this.

Every case runs in a process of its own, one after another, so that its peak memory is its own.
Times are CPU seconds of this machine: only the ratios within one run mean anything elsewhere. The
table of the book is made from benchmarks/results.json, which this writes.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from seqcirc_utils import store
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import mean_activations
from seqcirc_utils.circuits import search
from seqcirc_utils.components import Component, components
from seqcirc_utils.models import fetching, loading, zoo
from seqcirc_utils.prompts import drawing
from seqcirc_utils.workflow.fingerprint import versions

THRESHOLD = 0.8
RESULTS = Path(__file__).with_name("results.json")


class Plain:
    """The published procedure written plainly: whole passes, all logits, means made anew.

    The original code recomputes the means of heads and of MLPs for every candidate, each from three
    whole passes over the corrupted prompts. With ``keep_means`` they are computed once instead.
    """

    def __init__(
        self, model: loading.Model, prompts: Any, corrupted: Any, keep_means: bool
    ) -> None:
        self.model, self.prompts, self.corrupted = model, prompts, corrupted
        self.means = None
        self.means = self.reference() if keep_means else None
        self.whole = self.score([])

    def reference(self) -> dict[str, torch.Tensor]:
        """Mean activations ``[pos, …]`` by hook name."""
        found = {}
        for kind in ("attn.hook_z", "hook_mlp_out"):
            parts = [
                self.model.bridge.run_with_cache(
                    tokens, names_filter=lambda name, kind=kind: name.endswith(kind)
                )[1]
                for tokens in self.corrupted.tokens.chunk(3)
            ]
            for name in parts[0].keys():  # noqa: SIM118 (a cache iterates over other things)
                found[name] = torch.cat([part[name] for part in parts]).mean(0)
        return found

    def score(self, removed: list[Component]) -> float:
        """Mean logit difference with components replaced by their means."""
        means = self.means or self.reference()
        hooks = []
        for component in removed:
            kind = "hook_mlp_out" if component.head is None else "attn.hook_z"
            name = f"blocks.{component.layer}.{kind}"

            def swap(
                value: torch.Tensor, hook: Any, head: Any = component.head, new: Any = means[name]
            ) -> torch.Tensor:
                value = value.clone()
                if head is None:
                    value[:] = new
                else:
                    value[:, :, head] = new[:, head]
                return value

            hooks.append((name, swap))
        logits = self.model.bridge.run_with_hooks(self.prompts.tokens, fwd_hooks=hooks)[:, -1]
        rows = torch.arange(len(logits))
        answers, lasts = logits[rows, self.prompts.answer_ids], logits[rows, self.prompts.last_ids]
        return (answers - lasts).mean().item()

    def sweep(self, trials: int = 0) -> tuple[list[Component], int]:
        """The published sweeps; stops after some trials if asked to. What is out, and trials."""
        out: list[Component] = []
        bar = tqdm(desc="Plain procedure", unit="trial", total=trials or None)
        for _, order in search.published_orders(self.model):
            before = len(out)
            for component in order:
                if component not in out:
                    if self.score([*out, component]) / self.whole >= THRESHOLD:
                        out.append(component)
                    bar.update()
                    if bar.n == trials:
                        return out, bar.n
            if len(out) == before:
                return out, bar.n
        raise AssertionError


def measured(function: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the CPU seconds it took."""
    begun = time.process_time()
    return function(), time.process_time() - begun


def peak_gb() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def prepare(model: str, task: str, n: int) -> tuple[loading.Model, Any, Any, Evaluator]:
    """Model, discovery prompts, corrupted prompts and the evaluator."""
    lm = loading.load(model, "cpu")
    sets = drawing.prompt_sets(lm, task, n_prompts=n, n_means=2 * n)
    means = mean_activations(lm, sets.means)
    prompts = sets.discovery
    if Evaluator(lm, prompts, means).intact.logit_diff.mean() <= 0:  # random weights: either side
        prompts = dataclasses.replace(
            prompts, answer_ids=prompts.last_ids, last_ids=prompts.answer_ids
        )
    return lm, prompts, sets.means, Evaluator(lm, prompts, means)


def searches(model: str, task: str, n: int, plain_trials: int) -> dict[str, Any]:
    """Both searches and the plain procedure, on the same prompts."""
    lm, prompts, corrupted, evaluator = prepare(model, task, n)
    with torch.no_grad():
        _, forward = measured(lambda: lm.bridge(prompts.tokens))
    sweep, sweep_seconds = measured(lambda: search.sweep(evaluator, THRESHOLD, progress="Sweep"))
    ranked, seconds = measured(lambda: search.ranked(evaluator, THRESHOLD, progress="Ranked"))
    peak = peak_gb()
    plain = Plain(lm, prompts, corrupted, keep_means=False)
    (out, trials), plain_seconds = measured(lambda: plain.sweep(plain_trials))
    ours = [s["component"] for s in sweep.steps[:trials] if s["removed"]]
    with torch.no_grad():
        kept = Plain(lm, prompts, corrupted, keep_means=True)
        (removed, all_trials), whole_seconds = measured(kept.sweep)
    plain_total = plain_seconds / trials * sweep.trials
    return {
        "model": model,
        "task": task,
        "prompts": n,
        "sweep trials": sweep.trials,
        "sweep size": len(sweep.components),
        "ranked trials": ranked.trials,
        "ranked size": len(ranked.components),
        "plain trials timed": trials,
        "plain s (extrapolated)": plain_total,
        "whole passes s": whole_seconds,
        "sweep s": sweep_seconds,
        "ranked s": seconds,
        "sweep in forward passes": sweep_seconds / forward,
        "plain / sweep": plain_total / sweep_seconds,
        "whole passes / sweep": whole_seconds / sweep_seconds,
        "sweep / ranked": sweep_seconds / seconds,
        "same decisions": ours == list(map(str, out)),
        "same circuit": set(components(lm)) - set(removed) == sweep.components
        and all_trials == sweep.trials,
        "peak GB": peak,
    }


def one_backward(model: loading.Model) -> Iterator[tuple[str, list[Component]]]:
    """The first backward sweep, and then nothing."""
    yield next(search.published_orders(model))
    yield "end", []


def growth(model: str, task: str, n: int, plain_trials: int) -> dict[str, Any]:
    """The first backward sweep alone, beside some trials of the plain procedure."""
    lm, prompts, corrupted, evaluator = prepare(model, task, n)
    found, seconds = measured(lambda: search.sweep(evaluator, THRESHOLD, orders=one_backward))
    peak = peak_gb()
    plain = Plain(lm, prompts, corrupted, keep_means=False)
    (_, trials), plain_seconds = measured(lambda: plain.sweep(plain_trials))
    total = plain_seconds / trials * found.trials
    return {
        "model": model,
        "layers": lm.n_layers,
        "heads": lm.n_heads,
        "prompts": n,
        "trials": found.trials,
        "sweep s": seconds,
        "ms a trial": 1000 * seconds / found.trials,
        "plain / sweep": total / seconds,
        "peak GB": peak,
    }


def memory(model: str, task: str, n: int, plain_trials: int) -> dict[str, Any]:
    """Peak memory of the ranked search."""
    _, _, _, evaluator = prepare(model, task, n)
    _, seconds = measured(lambda: search.ranked(evaluator, THRESHOLD, progress="Ranked"))
    return {"model": model, "prompts": n, "ranked s": seconds, "peak GB": peak_gb()}


def random_gpt2(layers: int, heads: int, directory: Path) -> str:
    """Save a GPT-2 of random weights (head size 64) with the default model's tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(fetching.fetch(zoo.DEFAULT))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64 * heads, n_layer=layers, n_head=heads)
    target = directory / f"random-gpt2-{layers}x{heads}"
    GPT2LMHeadModel(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return str(target)


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "searches": searches,
    "growth": growth,
    "memory": memory,
}


def plan(quick: bool, directory: Path) -> list[tuple[str, str, str, int, int]]:
    """The cases: kind, model, task, prompts, trials of the plain procedure that are timed."""
    default, n = zoo.DEFAULT, 2 if quick else 4
    small = random_gpt2(12, 12, directory)
    cases = [("searches", default, task, n, 2) for task in ("digits", "number_words", "months")]
    cases.append(("searches", small, "months", n, 2))
    cases += [("growth", small, "months", prompts, 2) for prompts in (2, 4, 8)]
    cases += [("growth", random_gpt2(6, 12, directory), "months", 4, 2)]
    cases += [("growth", random_gpt2(12, 6, directory), "months", 4, 2)]
    cases.append(("memory", default, "months", 8 if quick else 64, 0))
    return cases[:1] + cases[-1:] if quick else cases


def main() -> None:
    """Run every case in its own process and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="two small cases, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.case:
        kind, *arguments = json.loads(given.case)
        print(json.dumps(CASES[kind](*arguments)))
        return
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    found: dict[str, Any] = {"machine": machine, "versions": versions(), "threshold": THRESHOLD}
    found |= {kind: [] for kind in CASES}
    with tempfile.TemporaryDirectory() as directory:
        cases = plan(given.quick, Path(directory))
        for i, case in enumerate(cases, 1):
            name = Path(case[1]).name
            print(f"{i}/{len(cases)}: {case[0]}, {name}, {case[2]}, {case[3]} prompts", flush=True)
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[case[0]].append(json.loads(done.stdout.splitlines()[-1]) | {"model": name})
            store.write_json(given.output, found)  # after every case: an interruption loses one
    print(f"Written to {given.output}")


if __name__ == "__main__":
    main()
