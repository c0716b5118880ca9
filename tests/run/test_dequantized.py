"""4-bit weights that are unpacked once for a run: the numbers of those that are unpacked for each product."""

import json

import pytest
import torch
from rounding import drift, rounding, smooth
from safetensors.torch import load_file

from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.run import build
from sentexp.run.build import keeps_dequantized
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.run.train import train

STEADY = ("optim.lr=1e-2", "optim.eps=1e-2", "peft.dropout=0.0", "trainer.max_epochs=2", "trainer.eval_steps=1000")


@pytest.mark.slow
@pytest.mark.parametrize("extra", [["peft=qlora"], ["peft=dora", "peft.quantization=nf4"]], ids=["lora", "dora"])
@pytest.mark.parametrize("task", [[], ["task=causal_lm", "task.template=auto", "task.label_words=[bad,good]"]])
def test_the_numbers_are_those_of_packed_weights(config, tmp_path, extra, task):
    found = {}
    for keep in ("true", "false"):
        given = (*extra, *task, *STEADY, "baseline=false", f"model.keep_dequantized={keep}")
        found[keep] = train(config(*given, f"output_dir={tmp_path / keep}"))
    tolerance = rounding() + drift(1e-2, 8, 1e-2)
    assert found["true"].identity == found["false"].identity
    assert smooth(found["true"].metrics) == pytest.approx(smooth(found["false"].metrics), abs=tolerance)
    kept, packed = (load_file(result.weights / "adapter_model.safetensors") for result in found.values())
    assert kept.keys() == packed.keys()
    for name, weight in kept.items():
        torch.testing.assert_close(weight, packed[name], atol=tolerance, rtol=0)
    facts = [json.loads((result.weights / "sentexp.json").read_text())["storage"] for result in found.values()]
    assert facts[0] == facts[1]
    assert facts[0]["quantization"] == "nf4"


def test_out_of_memory_packs_the_weights_before_it_halves_the_batches(config, monkeypatch, capsys):
    original, seen = SequenceClassifier.forward, []

    def forward(self, texts, *given):
        kinds = {type(module).__name__ for module in self.model.modules()}
        seen.append(("Linear4bit" in kinds, texts.rows))
        if "Linear4bit" not in kinds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return original(self, texts, *given)

    monkeypatch.setattr(SequenceClassifier, "forward", forward)
    result = train(config("peft=qlora", "model.keep_dequantized=true"))
    assert result.metrics["train/steps"] == 4
    assert seen[0] == (False, 8)
    assert set(seen[1:]) == {(True, 8)}
    said = "Out of memory: starting again with packed weights (model.keep_dequantized=false)"
    assert said in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("extra", "device", "total", "kept"),
    [
        ([], "cpu", 1 << 40, False),
        ([], "cuda", 1 << 40, True),
        ([], "cuda", 1 << 10, False),
        (["model.keep_dequantized=true"], "cpu", 1 << 10, True),
        (["model.keep_dequantized=false"], "cuda", 1 << 40, False),
        (["peft.quantization=int8", "model.keep_dequantized=true"], "cuda", 1 << 40, False),
        (["peft=lora", "model.keep_dequantized=true"], "cuda", 1 << 40, False),
        (["peft.compute_dtype=bf16", "model.keep_dequantized=true"], "cuda", 1 << 40, False),
    ],
)
def test_weights_are_unpacked_where_they_are_packed_and_there_is_room(config, monkeypatch, extra, device, total, kept):
    inputs = prepare_inputs(resolve_inputs(config("peft=qlora", *extra)), show=False)
    inputs.device = torch.device(device)
    monkeypatch.setattr(build, "total_memory", lambda _: total)
    assert keeps_dequantized(inputs) is kept
