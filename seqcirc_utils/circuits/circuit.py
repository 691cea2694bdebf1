"""What a circuit is."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from seqcirc_utils import store
from seqcirc_utils.components import Component


@dataclass(frozen=True)
class Circuit:
    """A node circuit of one task; everything outside it is ablated.

    Attributes:
        heads: ``[[layer, head], …]``, sorted.
        mlps: ``[layer, …]``, sorted.
        faithfulness: On evaluation prompts, of the whole model's logit difference.
        edges: Names such as ``4.10->9.1.q``; empty when no edges were searched for.
    """

    model: str
    task: str
    method: str
    ablation: str
    threshold: float
    n_prompts: int
    seed: int
    heads: list[list[int]]
    mlps: list[int]
    faithfulness: dict[str, float]
    edges: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def components(self) -> set[Component]:
        """The circuit as a set of components."""
        heads = {Component(layer, head) for layer, head in self.heads}
        return heads | {Component(layer, None) for layer in self.mlps}

    def __str__(self) -> str:
        f = self.faithfulness
        return (
            f"{self.task}: {len(self.heads)} heads, {len(self.mlps)} MLPs, faithfulness "
            f"{f['mean']:.2f} [{f['low']:.2f}, {f['high']:.2f}]"
        )

    def save(self, path: Path | str) -> Path:
        """Write the circuit as JSON."""
        return store.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> "Circuit":
        """Read a circuit."""
        return cls(**store.read_json(path))
