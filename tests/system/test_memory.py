"""Memory: what is used, free and given back, and what is never collected."""

import os
import subprocess
import sys

import pytest
import torch

from sentexp.system.memory import (
    KERNEL_CACHES,
    free_memory_gib,
    peak_memory_gib,
    release_memory,
    reset_peak_memory,
    used_memory_gib,
)

CPU = torch.device("cpu")


def test_memory_is_counted_in_gib():
    assert 0.1 < used_memory_gib(CPU) <= peak_memory_gib(CPU) + 0.01
    assert 0.1 < free_memory_gib(CPU) < 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the peak of the whole process")
def test_the_peak_is_counted_anew():
    block = torch.ones(64 << 20)  # 256 MiB
    before = peak_memory_gib(CPU)
    del block
    release_memory()
    reset_peak_memory(CPU)
    assert peak_memory_gib(CPU) < before - 0.2


PRODUCTS = """
import os, torch
from sentexp.system.memory import limit_kernel_caches

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def multiply():
    weight = torch.zeros(64, 64, dtype=torch.bfloat16)
    torch.nn.functional.linear(torch.zeros(1, 64, dtype=torch.bfloat16), weight)
    before = resident()
    for rows in range(2, 500):
        torch.nn.functional.linear(torch.zeros(rows, 64, dtype=torch.bfloat16), weight)
    print(resident() - before, flush=True)

for prepare in (lambda: None, limit_kernel_caches):
    child = os.fork()  # the caches begin with the first product
    if child == 0:
        prepare()
        multiply()
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_of_many_shapes_leave_little_behind():
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}

    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True, env=environment)
    everything, few = map(float, done.stdout.split())
    if everything < 100:
        pytest.skip("this processor's kernels are not compiled for each shape")
    assert few < everything / 2
