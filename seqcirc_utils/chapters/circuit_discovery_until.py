"""The circuit that chapter 04 finds, under the name that its file has today."""

# until chapter 04 has findings
from dataclasses import dataclass
from pathlib import Path

from seqcirc_utils.chapters.findings import Findings, part
from seqcirc_utils.circuits.circuit import Circuit


@dataclass(frozen=True, kw_only=True)
class CircuitDiscovery(Findings):
    """The circuit of a task."""

    stage = "04_circuit_discovery"

    circuit: Circuit = part("circuit.json", Circuit)

    @classmethod
    def _path(cls, directory: Path, suffix: str) -> Path:
        return directory / suffix
