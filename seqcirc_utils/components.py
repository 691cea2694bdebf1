"""A head, an MLP, an edge between them: names, order and kinds; no torch."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from seqcirc_utils.errors import UserError


class Component(NamedTuple):
    """A head (``4.10``: layer 4, head 10) or, with ``head=None``, an MLP (``mlp9``).

    Components sort in the order of computation: by layer, heads before the MLP.
    """

    layer: int
    head: int | None

    def __str__(self) -> str:
        return f"mlp{self.layer}" if self.head is None else f"{self.layer}.{self.head}"

    def __lt__(self, other: tuple[Any, ...], /) -> bool:
        return _place(*self) < _place(*other)

    def __gt__(self, other: tuple[Any, ...], /) -> bool:
        return _place(*self) > _place(*other)

    @classmethod
    def parse(cls, name: str) -> "Component":
        """The component of a name such as ``4.10`` or ``mlp9``."""
        try:
            if name.startswith("mlp"):
                return cls(int(name[3:]), None)
            layer, head = name.split(".")
            return cls(int(layer), int(head))
        except ValueError:
            raise UserError(
                f"unknown component {name!r}: heads are written like 4.10, MLPs like mlp9."
            ) from None


def _place(layer: int, head: int | None) -> tuple[int, float]:
    return layer, float("inf") if head is None else head


class Shape(Protocol):
    """All that names of components depend on; a model has it."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    def n_heads(self) -> int:
        """Number of attention heads in a block."""


def components(model: Shape) -> list[Component]:
    """Every component: layer by layer, heads and then the MLP."""
    heads = [*range(model.n_heads), None]
    return [Component(layer, head) for layer in range(model.n_layers) for head in heads]


def by_kind(circuit: Iterable[Component]) -> dict[str, set[Component]]:
    """A circuit's heads and MLPs apart."""
    circuit = set(circuit)
    heads = {c for c in circuit if c.head is not None}
    return {"heads": heads, "MLPs": circuit - heads}


def split(circuit: Iterable[Component]) -> tuple[list[list[int]], list[int]]:
    """Components as sorted heads ``[[layer, head], …]`` and MLPs ``[layer, …]``."""
    heads, mlps = (sorted(part) for part in by_kind(circuit).values())
    return [[c.layer, c.head] for c in heads if c.head is not None], [c.layer for c in mlps]


SOURCES = ("q", "k", "v")


class Edge(NamedTuple):
    """A component's write as another reads it: ``4.10->9.1.q``, ``mlp3->mlp5``, ``mlp9->logits``.

    Attributes:
        sender: The component that writes.
        receiver: The component that reads; ``None`` for the logits (the final residual).
        source: ``q``, ``k`` or ``v`` when a head reads, else empty.
    """

    sender: Component
    receiver: Component | None
    source: str = ""

    def __str__(self) -> str:
        reader = "logits" if self.receiver is None else str(self.receiver)
        return f"{self.sender}->{reader}" + (f".{self.source}" if self.source else "")

    @classmethod
    def parse(cls, name: str) -> "Edge":
        """The edge of a name such as ``4.10->9.1.q``."""
        sender, arrow, reader = name.partition("->")
        try:
            if not arrow:
                raise UserError("no arrow")
            if reader == "logits":
                return cls(Component.parse(sender), None)
            source = reader.rpartition(".")[2] if reader[-2:-1] == "." else ""
            source = source if source in SOURCES else ""
            receiver = Component.parse(reader.removesuffix(f".{source}"))
            if (receiver.head is None) == bool(source):
                raise UserError("a head is read into by q, k or v, an MLP by nothing")
            return cls(Component.parse(sender), receiver, source)
        except UserError:
            raise UserError(
                f"unknown edge {name!r}: edges are written like 4.10->9.1.q, 4.10->mlp5, "
                "mlp3->mlp5 or mlp9->logits."
            ) from None


def sources(node: Component) -> tuple[str, ...]:
    """The inputs of a component: q, k and v of a head; an MLP has one, without a name."""
    return ("",) if node.head is None else SOURCES


def _feeds(sender: Component, receiver: Component) -> bool:
    """Whether ``receiver`` reads what ``sender`` writes (heads feed the MLP of their own layer)."""
    own_mlp = receiver.head is None and sender.head is not None
    return sender.layer < receiver.layer + own_mlp


def edges_of(nodes: Iterable[Component]) -> list[Edge]:
    """Every edge of a node circuit, receiver by receiver in the order of computation.

    From each head and MLP into the q, k and v of each later head, each later MLP, and the logits.
    """
    ordered = sorted(set(nodes))
    inner = [Edge(n, r, s) for r in ordered for s in sources(r) for n in ordered if _feeds(n, r)]
    return inner + [Edge(n, None) for n in ordered]
