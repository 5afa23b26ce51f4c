"""What a process uses of its machine, for the records of a run."""

import os
from contextlib import suppress
from pathlib import Path

import torch


def usage(device: torch.device) -> dict[str, float]:
    """{"memory_gb": resident memory of this process}; on a GPU also "gpu_memory_gb", the most its tensors took since the last reading, and
    "gpu_busy", the share of the last second or so in which a kernel ran, where NVML (package nvidia-ml-py) is there to tell.
    """
    used = {"memory_gb": round(resident_bytes() / 1e9, 3)}
    if device.type == "cuda":
        used["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
        torch.cuda.reset_peak_memory_stats(device)
        with suppress(ModuleNotFoundError, RuntimeError):  # no NVML, or one that does not know this device
            used["gpu_busy"] = torch.cuda.utilization(device) / 100
    return used


def resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
