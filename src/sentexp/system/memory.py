"""Memory: how much was used and is free, how to give it back, and what an error says that means it ran out."""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

import psutil
import torch

GIB = 1 << 30
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What oneDNN and PyTorch's layer over it read when they begin: how many kernels they keep."""


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the peak anew, so that a run of a sweep does not report that of an earlier one (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory used: of the GPU by its allocator, else of this process.

    On Linux that is the peak since `reset_peak_memory`, which neither psutil nor getrusage tells.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def used_memory_gib(device: torch.device) -> float:
    """Return the memory in use: of the GPU by its allocator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    return float(psutil.Process().memory_info().rss) / GIB


def total_memory(device: torch.device) -> int:
    """Return the bytes that a GPU has, or the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def free_memory_gib(device: torch.device) -> float:
    """Return the memory that a process could still take: of the GPU, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    return float(psutil.virtual_memory().available) / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is that of CUDA's allocator, or of the CPU's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def limit_kernel_caches() -> None:
    """Let oneDNN keep few kernels, if the process has not begun with it: by itself it keeps 1,024, one for each shape.

    Rows without padding have another shape in every batch, so these would grow to gigabytes, and are hardly ever found
    again. One batch needs about thirty.
    """
    for variable in KERNEL_CACHES:
        os.environ.setdefault(variable, "64")


def release_memory() -> None:
    """Give back what nothing uses any more: reference cycles, the CUDA cache, and glibc's free lists."""
    gc.collect()
    torch.cuda.empty_cache()
    trim_memory()


def trim_memory() -> None:
    """Give back the pages of tensors that PyTorch has freed, which glibc keeps; on other systems it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
