"""Device and arithmetic."""

import gc
import os
import subprocess
import sys

import pytest
import torch

from sentexp.config import Precision
from sentexp.errors import UserError
from sentexp.system import hardware
from sentexp.system.hardware import (
    KERNEL_CACHES,
    choose_device,
    choose_precision,
    describe,
    freeze_imports,
    peak_memory_gib,
)

CPU = torch.device("cpu")


def test_precision_auto_is_bf16_where_the_processor_multiplies_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision(Precision.auto, CPU) is Precision.bf16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision(Precision.auto, CPU) is Precision.fp32
    assert choose_precision(Precision.bf16, CPU) is Precision.bf16


def test_what_the_machine_lacks_is_refused():
    with pytest.raises(UserError, match=r"trainer.precision=fp16 needs a CUDA GPU"):
        choose_precision(Precision.fp16, CPU)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"trainer.accelerator=gpu, but no CUDA GPU"):
            choose_device("gpu")
    assert choose_device("cpu") == CPU


def test_the_machine_is_described():
    facts = describe(CPU)
    assert facts["cpu"]
    assert int(facts["cpu_cores"]) >= 1
    assert facts["accelerator"] == "none"
    assert peak_memory_gib(CPU) > 0.1


PRODUCTS = """
import os, torch
from sentexp.system.hardware import limit_kernel_caches

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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_of_many_shapes_leave_little_behind():
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}

    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True, env=environment)
    everything, few = map(float, done.stdout.split())
    if everything < 100:
        pytest.skip("this processor's kernels are not compiled for each shape")
    assert few < everything / 2


def test_what_is_imported_is_frozen_once(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append("colorsys" in sys.modules))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    hardware._freeze.cache_clear()
    freeze_imports("colorsys")
    freeze_imports("colorsys", "json")  # by now models may be loaded, which must stay in reach of the collector
    assert frozen == [True]
    hardware._freeze.cache_clear()
