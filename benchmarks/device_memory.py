"""Memory on a device, for the benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch

Task = Callable[[], object]


def peak_bytes(task: Task, device: torch.device) -> int:
    """Device memory at a task's peak, with all that was allocated before."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    task()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
