"""The configuration of a run with all that depends on the rest of it, or on the model, resolved once."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sentexp.config import (
    ASKING,
    AUTO,
    BARE,
    CausalLM,
    Config,
    HeadInit,
    HeadLoss,
    SequenceClassification,
    Strategy,
    TaskConfig,
)
from sentexp.data.prompts import resolve_template
from sentexp.distributed.launch import current_launch
from sentexp.errors import require
from sentexp.models.architecture import model_type
from sentexp.models.encoders import ENCODERS
from sentexp.models.pretrained import Backbone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve_config(config: Config) -> Config:
    """Return the configuration without keys that are left open.

    Baselines are for sweeps and for `causal_lm`, plots for single runs; of several processes the first shows progress.
    """
    in_sweep = config.sweep.name is not None
    baseline = in_sweep or isinstance(config.task, CausalLM) if config.baseline is None else config.baseline
    plots = not in_sweep if config.plots is None else config.plots
    trainer = replace(config.trainer, progress_bar=config.trainer.progress_bar and not is_follower(config))
    return replace(config, baseline=baseline, plots=plots, trainer=trainer)


def resolve_task(
    config: Config, backbone: Backbone, tokenizer: "PreTrainedTokenizerBase", has_head: bool
) -> TaskConfig:
    """Return the task of a run with what its model decides: the template, and where a new head starts.

    Args:
        config: of the run.
        backbone: of the run.
        tokenizer: of the backbone.
        has_head: whether the backbone is a classifier whose head is used.

    Raises:
        UserError: a head that is to start at label words, and cannot.
    """
    task = config.task
    if isinstance(task, CausalLM):
        return replace(task, template=resolve_template(task, tokenizer))
    assert isinstance(task, SequenceClassification)
    kind = model_type(backbone)
    reads_words = kind not in ENCODERS and not has_head
    require(
        task.head_init is not HeadInit.label_words or reads_words,
        f"task.head_init=label_words starts a new head at words that a language model answers, and "
        f"{config.model.given_as} {'has a head' if has_head else f'is {kind}, an encoder'}: leave it auto"
        f"{', or give model.head=new' if has_head else ''}.",
    )
    require(
        not has_head or task.loss in (HeadLoss.cross_entropy, HeadLoss.multi_label),
        f"task.loss={task.loss.name} needs a head of its own, and that of {config.model.given_as} has a row for each "
        "class: give model.head=new.",
    )
    at_words = reads_words and task.loss is HeadLoss.cross_entropy
    template = ASKING if reads_words else BARE
    start = HeadInit.label_words if at_words else HeadInit.normal
    return replace(
        task,
        template=template if task.template == AUTO else task.template,
        head_init=start if task.head_init is HeadInit.auto else task.head_init,
    )


def is_follower(config: Config) -> bool:
    """Tell whether another process of the run is its main process."""
    return config.trainer.strategy is not Strategy.single and current_launch().rank > 0
