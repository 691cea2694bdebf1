"""Scores of nodes and edges in the MIB benchmark's circuit files (JSON), written and read.

A file names the model's shape (``cfg``), and for each node and edge a ``score`` and whether it is
``in_graph``. Nodes are ``input``, ``a4.h10`` (layer 4, head 10), ``m9``, ``logits``; edges
``a4.h10->a9.h1<q>``, ``m3->m5``, ``input->logits``. A node without a score is in every circuit.
Its other format, a pickle of torch, is not read: it can run code.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqcirc_utils import store
from seqcirc_utils.components import Component, components, sources
from seqcirc_utils.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """The shape of a model, as the files tell it."""

    n_layers: int
    n_heads: int
    d_model: int
    parallel_attn_mlp: bool = False

    @property
    def writers(self) -> list[str]:
        """Names of what writes, in MIB's order: the embedding, then the components."""
        return ["input", *map(node_name, components(self))]

    @property
    def readers(self) -> list[str]:
        """Names of what reads: q of a layer's heads, then k, v, its MLP; at last the logits."""
        found = []
        for layer in range(self.n_layers):
            heads = [Component(layer, head) for head in range(self.n_heads)]
            found += [f"{node_name(h)}<{s}>" for s in sources(heads[0]) for h in heads]
            found.append(f"m{layer}")
        return [*found, "logits"]

    def edges(self) -> list[tuple[int, int]]:
        """Places ``(writer, reader)`` of all edges that there are."""
        pairs = []
        for r, reader in enumerate(self.readers):
            place = _layer(reader, self.n_layers)
            for w, writer in enumerate(self.writers):
                own = reader.startswith("m") and "h" in writer and not self.parallel_attn_mlp
                if _layer(writer, -1) < place + own:
                    pairs.append((w, r))
        return pairs


@dataclass(frozen=True)
class Scores:
    """Scores as a file holds them.

    Attributes:
        sizes: The model's shape.
        nodes: Scores ``[writer]`` in the order of ``sizes.writers``; NaN where there is none.
        edges: Scores ``[writer, reader]``; NaN where there is no edge, or none was scored.
        kept: Names of the nodes and edges that are in the circuit.
    """

    sizes: Sizes
    nodes: np.ndarray
    edges: np.ndarray
    kept: Collection[str] = field(default_factory=frozenset)


def node_name(component: Component) -> str:
    """MIB's name of a component: ``a4.h10``, ``m9``."""
    layer, head = component
    return f"m{layer}" if head is None else f"a{layer}.h{head}"


def _layer(name: str, ends: int) -> int:
    """The layer of a node's or a reader's name; that of the embedding and the logits is given."""
    return ends if name in ("input", "logits") else int(name[1:].partition(".")[0])


def of_components(sizes: Sizes, values: np.ndarray, kept: Collection[Component] = ()) -> Scores:
    """Scores of components ``[component]`` alone: no edges, and none for the embedding."""
    edges = np.full((len(sizes.writers), len(sizes.readers)), np.nan)
    names = {"input", *map(node_name, kept)} if kept else set()
    return Scores(sizes, np.concatenate([[np.nan], values]), edges, names)


def save(scores: Scores, path: Path | str) -> Path:
    """Write scores as a circuit file; edges without a score get 0, for the benchmark needs one."""
    nodes: dict[str, Any] = {
        name: {"in_graph": name in scores.kept}
        | ({} if math.isnan(value) else {"score": float(value)})
        for name, value in zip(scores.sizes.writers, scores.nodes, strict=True)
    }
    nodes["logits"] = {"in_graph": True}
    edges, readers = {}, scores.sizes.readers
    for w, r in scores.sizes.edges():
        name = f"{scores.sizes.writers[w]}->{readers[r]}"
        value = float(np.nan_to_num(scores.edges[w, r]))
        edges[name] = {"score": value, "in_graph": name in scores.kept}
    cfg = {name: getattr(scores.sizes, name) for name in Sizes.__dataclass_fields__}
    return store.write_json(path, {"cfg": cfg, "nodes": nodes, "edges": edges})


def load(path: Path | str) -> Scores:
    """Read a circuit file.

    Raises:
        UserError: for a file that is missing, is no circuit file, or names what its model has not.
    """
    data = store.read_json(path)
    try:
        cfg: Mapping[str, Any] = data["cfg"]
        sizes = Sizes(**{name: cfg[name] for name in Sizes.__dataclass_fields__ if name in cfg})
        nodes, edges = data["nodes"], data["edges"]
        places = {name: i for i, name in enumerate(sizes.writers)}
        readers = {name: i for i, name in enumerate(sizes.readers)}
        there = set(sizes.edges())
        values = np.full(len(places), np.nan)
        table = np.full((len(places), len(readers)), np.nan)
        for name, found in nodes.items():
            if name != "logits":
                values[places[name]] = found.get("score", np.nan)
        for name, found in edges.items():
            writer, _, reader = name.partition("->")
            place = places[writer], readers[reader]
            if place not in there:
                raise KeyError(name)
            table[place] = found["score"]
        kept = {n for part in (nodes, edges) for n, found in part.items() if found["in_graph"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no circuit file of MIB: {error} does not fit.") from None
    return Scores(sizes, values, table, frozenset(kept - {"logits"}))
