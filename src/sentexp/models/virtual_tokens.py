"""Virtual tokens before each row: prompt tuning, P-tuning and prefix tuning, where PEFT's forward pass puts them.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) and P-tuning (Liu et al. 2021, arXiv:2103.10385) train embeddings,
and a row becomes longer by so many columns; prefix tuning (Li & Liang 2021, arXiv:2101.00190) trains keys and values of
every layer, and a row keeps its columns. Either way the tokens of a row have later positions. PEFT counts positions by
column; here they are counted by the attention mask, so that padding on the left changes nothing.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sentexp.config import VIRTUAL, PeftConfig, PeftMethod
from sentexp.models.structure import base_of


class Inputs(NamedTuple):
    """What a transformers model reads, by the names of its arguments.

    The first `ahead` columns of what it returns are those of virtual tokens.
    """

    options: dict[str, Any]
    ahead: int


def count_virtual_tokens(peft: PeftConfig) -> int:
    """Return how many positions of each row virtual tokens take."""
    is_virtual = isinstance(peft, PeftMethod) and peft.type in VIRTUAL
    return int(peft.own_keys().get("num_virtual_tokens") or 0) if is_virtual else 0  # type: ignore[attr-defined]


def count_columns(peft: PeftConfig) -> int:
    """Return how many columns virtual tokens add to each row: none where they are keys and values of every layer."""
    is_prefix = isinstance(peft, PeftMethod) and peft.type == "PREFIX_TUNING"
    return 0 if is_prefix else count_virtual_tokens(peft)


def has_virtual_tokens(model: nn.Module) -> bool:
    """Tell whether a model, wrapped by PEFT or not, puts virtual tokens before its rows."""
    config: Any = getattr(model, "peft_config", {})
    return "default" in config and bool(config["default"].is_prompt_learning)


def columns_ahead(model: Any) -> int:
    """Return how many columns of a row's states are those of virtual tokens."""
    config = model.active_peft_config if has_virtual_tokens(model) else None
    return 0 if config is None or config.peft_type == "PREFIX_TUNING" else int(config.num_virtual_tokens)


def inputs_of(model: Any, ids: Tensor, mask: Tensor, positions: Tensor) -> Inputs:
    """Return what transformers' model reads of padded rows.

    Args:
        model: wrapped by PEFT or not.
        ids: of the tokens, shape (rows, tokens).
        mask: 1 at tokens and 0 at padding, same shape; or what is added to the scores of attention, shape
            (rows, 1, tokens, tokens).
        positions: of the tokens, same shape as `ids`.
    """
    if not has_virtual_tokens(model):
        return Inputs({"input_ids": ids, "attention_mask": mask, "position_ids": positions}, 0)
    config = model.active_peft_config
    count, prompt = config.num_virtual_tokens, model.get_prompt(batch_size=len(ids))
    if config.peft_type == "PREFIX_TUNING":
        seen = _see(mask, count, 0)
        options = {"input_ids": ids, "past_key_values": prompt}
        return Inputs(options | {"attention_mask": seen, "position_ids": positions + count}, 0)
    embedded = base_of(model).get_input_embeddings()(ids)
    columns = torch.arange(count, device=ids.device).expand(len(ids), -1)
    options = {
        "inputs_embeds": torch.cat([prompt.to(embedded.dtype), embedded], 1),
        "attention_mask": _see(mask, count, count),
        "position_ids": torch.cat([columns + positions.min(), positions + count], 1),
    }
    return Inputs(options, count)


def _see(mask: Tensor, keys: int, queries: int) -> Tensor:
    """Return a mask with columns for virtual tokens, which each token sees; those that ask see what is before them."""
    if mask.ndim == 2:  # noqa: PLR2004 (rows and tokens)
        return nn.functional.pad(mask, (keys, 0), value=1)
    wider = nn.functional.pad(mask, (keys, 0, queries, 0))
    hidden = torch.ones(queries, wider.shape[-1], dtype=torch.bool, device=mask.device).triu(1)
    wider[:, :, :queries].masked_fill_(hidden, torch.finfo(mask.dtype).min)
    return wider
