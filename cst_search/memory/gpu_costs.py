"""GPU memory of a process besides its tensors: CUDA's context and cuBLAS's workspaces. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def constants() -> dict[str, float]:
    """Read the lines ``name: value`` of memory.yaml, without PyYAML: a trial must run without it."""
    lines = (Path(__file__).parent / "memory.yaml").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


@dataclass(frozen=True)
class GpuCosts:
    """Fixed costs of a process on one kind of GPU, in bytes.

    Attributes:
        context_bytes: CUDA's context with cuDNN's kernels.
        context_with_blas_bytes: with cuBLAS's too, which is loaded where matrices are multiplied.
        blas_workspace_bytes: cuBLAS's workspaces, those of the forward and the backward thread together.
        target: name of the GPU, as shown to the user.
        reserved_factor: measured over predicted reserved bytes.
    """

    context_bytes: int
    context_with_blas_bytes: int
    blas_workspace_bytes: int
    target: str = "CUDA GPU (generic)"
    reserved_factor: float = 1.0


_H100 = constants()
#: Costs of a GPU that is not known: those of the H100, on which they were measured.
GENERIC = GpuCosts(
    int(_H100["context_bytes"]), int(_H100["context_with_blas_bytes"]), int(_H100["blas_workspace_bytes"])
)
