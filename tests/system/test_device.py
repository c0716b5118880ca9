"""Device and arithmetic."""

import pytest
import torch

from sentexp.config import Precision
from sentexp.errors import UserError
from sentexp.system.device import choose_device, choose_precision, describe

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
    assert float(facts["memory_gib"]) >= 1
