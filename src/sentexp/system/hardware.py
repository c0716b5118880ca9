"""The machine: which device and arithmetic a run uses, what it is, and how much memory was used."""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import resource
import sys
from importlib import import_module
from pathlib import Path

import torch

from sentexp.config import Precision
from sentexp.errors import require

GIB = 1 << 30
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What oneDNN and PyTorch's layer over it read when they begin: how many kernels they keep."""


def choose_device(accelerator: str) -> torch.device:
    """Return the device that `trainer.accelerator` (auto, cpu or gpu) means here.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    require(
        accelerator != "gpu" or available,
        "trainer.accelerator=gpu, but no CUDA GPU is visible here: use trainer.accelerator=cpu or auto.",
    )
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the arithmetic: `auto` is bf16 where the hardware multiplies it natively, else fp32.

    Natively means CUDA from compute capability 8.0, or a CPU with AMX or AVX512-BF16.

    Raises:
        UserError: fp16 without a GPU.
    """
    require(
        precision is not Precision.fp16 or device.type == "cuda",
        "trainer.precision=fp16 needs a CUDA GPU: use trainer.precision=bf16, fp32 or auto on the CPU.",
    )
    if precision is not Precision.auto:
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return Precision.bf16 if native else Precision.fp32


def describe(device: torch.device) -> dict[str, str]:
    """Return what the machine is: processor, cores, memory, accelerator, operating system."""
    facts = {
        "cpu": _cpu_model(),
        "cpu_cores": str(os.cpu_count()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "accelerator": "none",
    }
    if device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(device)
        facts["accelerator_memory_gib"] = f"{torch.cuda.get_device_properties(device).total_memory / GIB:.0f}"
    return facts


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the peak anew, so that a run of a sweep does not report that of an earlier one (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory used: of the GPU by its allocator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is that of CUDA's allocator, or of the CPU's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def used_memory_gib(device: torch.device) -> float:
    """Return the memory in use: of the GPU by its allocator, else of this process (Linux; 0 elsewhere)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / GIB
    return 0.0


def free_memory_gib(device: torch.device) -> float:
    """Return the memory that a process could still take: of the GPU, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def limit_kernel_caches() -> None:
    """Let oneDNN keep few kernels, if the process has not begun with it: by itself it keeps 1,024, one for each shape.

    Rows without padding have another shape in every batch, so these would grow to gigabytes, and are hardly ever found
    again. One batch needs a dozen.
    """
    for variable in KERNEL_CACHES:
        os.environ.setdefault(variable, "64")


def freeze_imports(*modules: str) -> None:
    """Import these modules; the first call lets the garbage collector skip all that this process has imported.

    A run collects garbage when it ends: among the 800,000 objects that the libraries hold, that takes half a second.
    Call it before any model is loaded, as what it skips is never collected.
    """
    for module in modules:
        import_module(module)
    _freeze()


@functools.cache
def _freeze() -> None:
    gc.collect()
    gc.freeze()


def release_memory() -> None:
    """Give back what nothing uses any more: reference cycles, the CUDA cache, and glibc's free lists."""
    gc.collect()
    torch.cuda.empty_cache()
    trim_memory()


def trim_memory() -> None:
    """Give back the pages of tensors that PyTorch has freed, which glibc keeps; on other systems it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
