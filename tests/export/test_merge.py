"""What no merged model may hold."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sentexp.errors import UserError
from sentexp.models.merge import merge
from sentexp.models.saved import find_base, read_trained


def test_an_adapter_that_has_diverged_is_not_merged(train):
    trained = read_trained(train("trainer.max_steps=1", "baseline=false").weights)
    base, file = find_base(trained), trained.folder / "adapter_model.safetensors"
    assert all(weight.isfinite().all() for weight in merge(trained, base).parameters())
    adapter = load_file(file)
    name = next(name for name in adapter if "lora_B" in name)
    save_file(adapter | {name: torch.full_like(adapter[name], torch.nan)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"merged weights hold numbers that are not finite"):
        merge(trained, base)
