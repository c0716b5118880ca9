"""Saving what was trained: a folder that PEFT or transformers load without sentexp; safetensors only (law 11)."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from sentexp.config import BiasOnly, FullFineTuning, HeadOnly, PeftConfig, PeftMethod, Untuned
from sentexp.distributed import processes
from sentexp.distributed.sharding import gathered, gathered_state
from sentexp.models.adapters import trainable_state
from sentexp.models.lora_start import over_original_weights
from sentexp.models.structure import head_modules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_trained(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    peft: PeftConfig,
    base: str,
    facts: dict[str, Any],
    parent: Path,
) -> Path:
    """Write what was trained and return its folder; an older one of the same run is replaced. One process writes.

    `adapter/` is PEFT's own form, with the head in it; `model/` is a whole fine-tuned model; `head/` is the head
    alone; `prompt/` holds neither, for an untuned language model. The tokenizer and `sentexp.json` go with each.

    Args:
        model: the trained model, wrapped by PEFT where there is an adapter.
        tokenizer: of the backbone.
        peft: the way of training.
        base: hub id or folder of the backbone, for PEFT's configuration.
        facts: what is needed to score texts as in the run: task, labels, prompt, maximum length, the prior that is
            divided out of the probabilities, and the temperature after that.
        parent: the run's folder.
    """
    head = head_modules(model)
    kinds = {Untuned: "head" if head else "prompt", HeadOnly: "head", FullFineTuning: "model", BiasOnly: "model"}
    name = kinds.get(type(peft), "adapter")
    folder = parent / name
    saves_itself = name == "model" or isinstance(peft, PeftMethod)  # with what an adapter has beside what trains
    state: Any = gathered_state(model) if saves_itself else trainable_state(model)
    if name == "head":
        parts = (
            (f"{path}.{key}", value) for path, module in head.items() for key, value in module.state_dict().items()
        )
        state = {key: gathered(value) for key, value in parts}

    _write(folder, model, tokenizer, state, base, facts)
    return folder


@processes.main_process_only
def _write(
    folder: Path,
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    state: Any,
    base: str,
    facts: dict[str, Any],
) -> None:
    """Write weights, tokenizer and facts; the others wait until all is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if folder.name == "head":
        save_file({key: value.cpu() for key, value in state.items()}, folder / "head.safetensors")
    if folder.name == "model":
        model.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
    if folder.name == "adapter":
        config: Any = model.peft_config["default"]  # type: ignore[index]
        config.base_model_name_or_path = base
        if config.peft_type == "ADALORA":
            config.rank_pattern = None  # of the last step: the weights may be those of another
        configs: Any = model.peft_config
        state, configs["default"] = over_original_weights(model, state, config)
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)  # type: ignore[operator]
        configs["default"] = config
    tokenizer.save_pretrained(folder)
    (folder / "sentexp.json").write_text(json.dumps(facts | {"base_model": base}, indent=2) + "\n")


def saved_mib(folder: Path) -> float:
    """Return the size of the weights that were saved in a folder, in MiB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20
