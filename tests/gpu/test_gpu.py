"""What only a CUDA GPU shows: bf16, fp16, 4-bit weights, bitsandbytes' optimizers."""

import random

import pytest
import torch
from rounding import rounding
from torch import Tensor

from sentexp.data.packing import Packer
from sentexp.models.fast.attention import attend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_every_precision_trains(train, precision, method):
    result = train(
        f"peft={method}", f"trainer.precision={precision}", "trainer.accelerator=gpu", "trainer.max_epochs=2"
    )
    assert result.metrics["train/steps"] == 8
    assert result.metrics["peak_memory_gib"] > 0


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_answers_are_learned_and_scored(train, precision, method):
    words = ["task=causal_lm", "task.template=auto", "task.label_words=[bad,good]", "task.generate=true"]
    result = train(f"peft={method}", f"trainer.precision={precision}", "trainer.accelerator=gpu", *words)
    assert result.metrics["train/steps"] == 4
    assert 0 <= result.metrics["test/off_label_mass"] <= 1
    assert "untuned" in result.baselines


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_every_optimizer_of_bitsandbytes_trains(train, optimizer):
    assert train("peft=qlora", f"optim={optimizer}", "trainer.accelerator=gpu").metrics["train/steps"] == 4


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_of_several_trains_on_its_gpu(train, strategy, method):
    result = train(f"trainer={strategy}", f"peft={method}", "trainer.precision=bf16", "trainer.accelerator=gpu")
    assert result.metrics["train/steps"] == 4
    assert next(result.weights.glob("*.safetensors")).stat().st_size > 1000


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_attention_is_that_of_float32_on_the_cpu(dtype, key_heads, prefix):
    rng = random.Random(prefix)
    rows = [[5, 6, 7, *(rng.randrange(9) for _ in range(length))] for length in (1, 4, 60, 17)]
    packed = Packer().score(rows, prefix)
    torch.manual_seed(0)
    states = [torch.randn(len(packed.ids), heads, 64) for heads in (4, key_heads, key_heads)]
    weights = torch.randn(len(packed.ids), 4, 64)

    def attended(device, dtype):
        given = [part.to(device, dtype).requires_grad_() for part in states]
        layout = type(packed)(*(part.to(device) if isinstance(part, Tensor) else part for part in packed))
        out = attend(*given, layout, 0.125)
        gradients = torch.autograd.grad((out.float() * weights.to(device)).sum(), given)
        return [part.float().cpu() for part in (out, *gradients)]

    for found, expected in zip(attended("cuda", dtype), attended("cpu", torch.float32), strict=True):
        assert (found - expected).norm() < rounding(float(expected.norm()), dtype, terms=1, sums=1)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_attention_of_encoders_is_that_of_float32_on_the_cpu(dtype, window):
    packed = Packer(causal=False).score([[5] * length for length in (1, 4, 60, 17)], 0)
    torch.manual_seed(0)
    states = [torch.randn(len(packed.ids), 4, 64) for _ in range(3)]
    weights = torch.randn(len(packed.ids), 4, 64)

    def attended(device, dtype):
        given = [part.to(device, dtype).requires_grad_() for part in states]
        layout = type(packed)(*(part.to(device) if isinstance(part, Tensor) else part for part in packed))
        out = attend(*given, layout, 0.125, window=window)
        gradients = torch.autograd.grad((out.float() * weights.to(device)).sum(), given)
        return [part.float().cpu() for part in (out, *gradients)]

    for found, expected in zip(attended("cuda", dtype), attended("cpu", torch.float32), strict=True):
        assert (found - expected).norm() < rounding(float(expected.norm()), dtype, terms=1, sums=1)
