"""The graph of a decoder that answers with label words gives the logits that the language model itself gives."""

from types import SimpleNamespace

import pytest
import torch
from decoders import SHAPE

from sentexp.config import HeadLoss
from sentexp.export.onnx_graph import graph_of

ANSWERS = [[7], [11]]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("gemma2", {"final_logit_softcapping": 0.1}),
        ("granite", {"logits_scaling": 9.0}),
        ("cohere", {"logit_scale": 9.0}),
    ],
)
def test_logits_are_capped_and_scaled(kind, changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    usual = AutoConfig.for_model(kind)
    shape = {name: value for name, value in (SHAPE | changes).items() if hasattr(usual, name)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).train(False)
    prompt = SimpleNamespace(answers=ANSWERS)
    facts = {
        "answers": True,
        "loss": HeadLoss.cross_entropy,
        "scale": None,
        "prior": None,
        "labels": ["no", "yes"],
        "identity": "",
    }
    graph = graph_of(model, SimpleNamespace(**facts, prompt=prompt))
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.inference_mode():
        found = graph(ids, mask)
        wanted = [model(ids[[row], :length]).logits[0, -1, [7, 11]] for row, length in ((0, 4), (1, 2))]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)
