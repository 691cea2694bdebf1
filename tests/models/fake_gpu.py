"""A GPU in name only: it computes on the CPU, but refuses what CUDA and MPS refuse.

Tensors of two devices do not mix, with CUDA's two exceptions (a number without dimensions; an
index), nothing goes to numpy unless copied, and there are no doubles (as on MPS).

``python tests/fake_gpu.py`` computes everything there and on the CPU. It is a process of its own,
because torch cannot forget a device.
"""

import contextlib
import tempfile
from dataclasses import is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
from conftest import ARCHITECTURES, save_tiny, word_tokenizer
from tokenizers_made import character_tokenizer, tokenizer_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from seqcirc_utils import components
from seqcirc_utils.ablation import answers as answers_module
from seqcirc_utils.ablation import edges, metrics, paths, replay, screening, text
from seqcirc_utils.ablation import evaluator as evaluator_module
from seqcirc_utils.ablation import pruning as pruning_module
from seqcirc_utils.analyses import attribution, editing, lens, observation, prediction, writes
from seqcirc_utils.circuits import search
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.methods import registry
from seqcirc_utils.models import devices, loading
from seqcirc_utils.prompts import drawing, plain_text, probes, questions, scores, vocabulary

NAME = "fakegpu"
_TAKES_CPU_INDEX = ("aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_")


class _Tensor(torch.Tensor):
    @staticmethod
    def __new__(cls, raw):
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        kind = {"dtype": raw.dtype, "device": f"{NAME}:0"}
        return torch.Tensor._make_wrapper_subclass(cls, raw.size(), **layout, **kind)

    def __init__(self, raw):
        self.raw = raw

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [isinstance(x, _Tensor) for x in given]
    name, device = func._schema.name, kwargs.get("device")
    to_ours = any(ours) if device is None else torch.device(device).type == NAME
    if name not in ("aten::_to_copy", "aten::copy_") and any(ours) and not all(ours):
        numbers = all(x.ndim == 0 for x, own in zip(given, ours, strict=True) if not own)
        indexed = name in _TAKES_CPU_INDEX and ours[0] and (len(args) < 3 or ours[-1])
        if not (indexed or (numbers and torch.Tag.pointwise in func.tags)):
            raise RuntimeError(f"{name} of tensors on the CPU and on {NAME}")
    if device is not None:
        kwargs = kwargs | {"device": "cpu"}
    args, kwargs = tree_map(lambda x: x.raw if isinstance(x, _Tensor) else x, (args, kwargs))
    result = func(*args, **kwargs)
    if func._schema.is_mutable and isinstance(result, torch.Tensor):
        return given[0]  # changed in place
    if to_ours and any(getattr(x, "dtype", None) == torch.float64 for x in tree_leaves(result)):
        raise TypeError(f"{NAME} has no float64 ({name})")
    return tree_map(lambda x: _Tensor(x) if to_ours and torch.is_tensor(x) else x, result)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def install():
    """Make the device known to torch and to the package; to be entered as a context."""
    _setup_privateuseone_for_python_backend(NAME)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) by way of the CPU
    devices.GPUS, loading.DEVICES = (NAME,), ("auto", "cpu", NAME)
    return _Mode()


def everything(model):
    """What the package computes with a model and prompts."""
    sets = drawing.prompt_sets(model, "months", n_prompts=4, n_means=5)
    prompts, words = sets.evaluation, vocabulary.vocabulary("months", model.tokenizer)
    yield "score", scores.score(model, prompts)
    for name, run, answers in (
        ("mean", replay.record(model, sets.means).activations.mean(), None),
        ("resample", replay.record(model, sets.corrupted).activations, prompts),
    ):
        evaluator = evaluator_module.Evaluator(model, prompts, run, answers=answers, max_rows=9)
        where = prompts.groups()["end"]
        some = [[], [Component(0, 1)], [Component(1, 2), Component(1, None)], [Component(2, 0)]]
        yield name, evaluator.intact
        yield f"{name} replaced", evaluator.replaced(some)
        yield f"{name} at the end", evaluator.replaced(some, positions=[None, where, where, None])
        yield f"{name} kept", evaluator.kept(some)
        yield f"{name} estimate", [*evaluator.estimate(some[2], 3).values()]
        yield (
            f"{name} screened",
            screening.single_effects(evaluator, [c for [c] in some[1::2]], 3)[1],
        )
        run = evaluator.run
        evaluator.run = replace(run, by_parts=False)
        yield f"{name} by blocks", evaluator.replaced(some)
        evaluator.run = run
    pruning = pruning_module.Pruning(evaluator, some[1])
    pruning.try_without(some[2])
    pruning.accept()
    yield "pruning", pruning.try_without(some[3])
    search.Log(None, evaluator)
    others = [i for i in words.ids if i is not None]
    for metric in (metrics.answer_log_prob, metrics.answer_over(others), metrics.minus_kl):
        yield "by metric", pruning_module.Pruning(evaluator, some[2], metric).score
        yield "estimate by metric", [*evaluator.estimate(some[2], 3, metric).values()]
    yield "said", prediction.said(evaluator, some, others)
    edits = [editing.Edit(Component(1, 0), 0.5), editing.Edit(Component(1, None), 0.0)]
    yield "edits", [*editing.Measured.prompts(model, prompts, edits).after.values()]
    if "ln1_post" not in model.bridge.blocks[0]._modules:
        path = Component(0, 1), [Component(1, 2), Component(2, 3)]
        for source in "qkv":
            yield f"path {source}", paths.path_effects(evaluator, *path, source)
        circuit = edges.EdgeEvaluator(evaluator, components.components(model)[6:])
        yield "edges", circuit.without([[e] for e in circuit.edges[::9]])
        yield "edge estimates", [*circuit.estimate(rows=2).values()]
    for method in registry.ALONE:
        with contextlib.suppress(UserError):  # relevance propagation: not on every architecture
            yield method, registry.scores(model, prompts, sets.corrupted, method=method).values
    observed = observation.observe(model, prompts, batch=3)
    yield "observed", [x for x in astuple_of(observed) if torch.is_tensor(x)]
    yield "ranks", writes.ov_ranks(model, observed.members, words.members)
    yield "bare", writes.bare_sequences(model, words)
    yield "direct", [*writes.direct_writes(model, observed, prompts, words).values()]
    yield "lens", lens.lens(model, observed, prompts)
    yield "patterns", [*observation.patterns(model, prompts, ["1.0", "2.3"]).values()]
    yield "member lens", attribution.member_lens(model, prompts, words)
    by_position = attribution.position_attribution(model, prompts[[0]], sets.corrupted[[0]])
    yield "by position", [*by_position.values()]
    if "ln1_post" not in model.bridge.blocks[0]._modules:
        found = attribution.direct_attribution(attribution.processed(model), prompts)
        yield "direct attribution", found[1]


def of_texts(reader, speller):
    """What it computes with texts and characters, which no architecture takes otherwise."""
    edits = [editing.Edit(Component(1, 0), 0.5), editing.Edit(Component(1, None), 0.0)]
    yield "text", text.text_loss(reader, [[], [Component(1, 0), Component(1, None)]])
    pieces = plain_text.text_chunks(reader)[0][:9]
    yield "edited text", [*editing.Measured.text(reader, pieces, edits).after.values()]
    fitted = questions.fit(speller, probes.probes(["plus_2"])[0], 6)
    for kind in answers_module.KINDS:
        bench = answers_module.Bench(speller, fitted, kind)
        yield f"probe {kind}", bench.ablated([[Component(0, 1), Component(2, 0)]])


def astuple_of(value):
    return [getattr(value, name) for name in vars(value)]


def numbers(value):
    """All numbers in a result, as one array."""
    if is_dataclass(value):
        value = astuple_of(value)
    if torch.is_tensor(value):
        return value.detach().cpu().double().numpy().ravel()
    if isinstance(value, np.ndarray):
        return value.ravel()
    if isinstance(value, (list, tuple)):
        return np.concatenate([numbers(item) for item in value])
    return np.array([value], float)


def main():
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        places = {name: Path(temporary) / name for name in (*ARCHITECTURES, "reader", "speller")}
        for name in ARCHITECTURES:
            save_tiny(name, places[name], word_tokenizer())
        save_tiny("llama", places["reader"], tokenizer_of(r"\d"))
        save_tiny("llama", places["speller"], character_tokenizer())
        stack.enter_context(install())
        for done, names in [
            *((everything, [name]) for name in ARCHITECTURES),
            (of_texts, ["reader", "speller"]),
        ]:
            sides = []
            for device in ("cpu", "auto"):
                loaded = [loading.load(str(places[name]), device) for name in names]
                kind = NAME if device == "auto" else "cpu"
                for lm in loaded:
                    held = [*lm.bridge.parameters(), *lm.bridge.buffers()]
                    assert lm.facts.device == kind and {x.device.type for x in held} == {kind}
                sides.append(done(*loaded))
            for (what, here), (_, there) in zip(*sides, strict=True):
                np.testing.assert_allclose(numbers(there), numbers(here), 1e-5, 1e-5, err_msg=what)
                print(names[0], what)


if __name__ == "__main__":
    main()
