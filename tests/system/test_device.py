"""Device and arithmetic."""

import pytest
import torch

from sentexp.config import Precision
from sentexp.errors import UserError
from sentexp.system import device
from sentexp.system.device import choose_device, choose_precision, describe

CPU = torch.device("cpu")


def test_precision_auto_is_bf16_where_the_processor_multiplies_it(monkeypatch):
    monkeypatch.setattr(device, "_bf16_is_faster", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision(Precision.auto, CPU) is Precision.bf16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision(Precision.auto, CPU) is Precision.fp32
    assert choose_precision(Precision.bf16, CPU) is Precision.bf16


@pytest.mark.parametrize(("seconds", "precision"), [((1e-3, 2e-3), "bf16"), ((2e-2, 1e-3), "fp32")])
def test_instructions_that_are_not_used_do_not_count(monkeypatch, seconds, precision):
    """As with ONEDNN_MAX_CPU_ISA=AVX2: products in bf16 are then emulated."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(device, "_bf16_is_faster", device._bf16_is_faster.__wrapped__)
    times = dict(zip((torch.bfloat16, torch.float32), seconds, strict=True))
    monkeypatch.setattr(device, "_seconds_of_product", times.__getitem__)
    assert choose_precision(Precision.auto, CPU) is Precision[precision]


def test_a_product_is_timed_in_one_thread(monkeypatch):
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    monkeypatch.setattr(device, "_seconds_of_product", lambda _: seen.append(torch.get_num_threads()) or 1.0)
    try:
        assert device._bf16_is_faster.__wrapped__() is False
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1, 1]
    monkeypatch.undo()
    assert 0 < device._seconds_of_product(torch.float32) < 60


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
