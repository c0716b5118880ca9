"""The device and the arithmetic of a run, and a description of the machine."""

import functools
import itertools
import os
import platform
import time
from pathlib import Path

import psutil
import torch

from sentexp.config import Precision
from sentexp.config.devices import NO_GPU
from sentexp.errors import require
from sentexp.system.memory import GIB


def choose_device(accelerator: str, key: str = "trainer.accelerator") -> torch.device:
    """Return the device that a key for it (auto, cpu or gpu) means here.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    require(accelerator != "gpu" or available, NO_GPU.format(key=key))
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def visible_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES takes for each GPU that this process sees."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in given[:count]] if given != [""] else [str(number) for number in range(count)]


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the arithmetic: `auto` is bf16 where the hardware multiplies it natively, else fp32.

    Natively means CUDA from compute capability 8.0, or a CPU with AMX or AVX512-BF16 whose products in bf16 are also
    faster than in float32: oneDNN may be a build without these kernels, or be kept from them (ONEDNN_MAX_CPU_ISA).

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
        instructions = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        native = instructions and _bf16_is_faster()
    return Precision.bf16 if native else Precision.fp32


@functools.cache
def _bf16_is_faster() -> bool:
    """Tell whether the CPU takes less time for products in bf16 than in float32, measured once in a process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other, and longer where the machine is busy
    try:
        return _seconds_of_product(torch.bfloat16) < _seconds_of_product(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _seconds_of_product(dtype: torch.dtype) -> float:
    """Return the least CPU time of five products of 256 tokens with weights of 768 by 768, in this thread."""
    tokens, weights = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    times = []
    for _ in range(6):  # the first one makes the kernel
        torch.nn.functional.linear(tokens, weights)
        times.append(time.thread_time())
    return min(end - start for start, end in itertools.pairwise(times))


def describe(device: torch.device) -> dict[str, str]:
    """Return what the machine is: processor, cores, memory, accelerator, operating system."""
    facts = {
        "cpu": _cpu_model(),
        "cpu_cores": str(os.cpu_count()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": f"{psutil.virtual_memory().total / GIB:.0f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "accelerator": "none",
    }
    if device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(device)
        facts["accelerator_memory_gib"] = f"{torch.cuda.get_device_properties(device).total_memory / GIB:.0f}"
    return facts


def _cpu_model() -> str:
    """Return the name of the processor, which psutil does not tell."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
