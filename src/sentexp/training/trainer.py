"""The Lightning trainer: callbacks, logger, fit and test."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from sentexp.config import Precision, Strategy, TrainerConfig
from sentexp.config.metric_names import is_better_higher
from sentexp.data.batch import Batch
from sentexp.data.datamodule import DataModule
from sentexp.distributed import processes
from sentexp.distributed.strategies import ReplicatedStrategy, ShardedStrategy, SingleStrategy
from sentexp.errors import OutOfMemory, first_line
from sentexp.system.memory import is_out_of_memory
from sentexp.system.stopwatch import TIMES
from sentexp.training.checkpoint import Checkpoints, ResumableEarlyStopping, read_checkpoint
from sentexp.training.module import ClassifierModule
from sentexp.training.progress_bar import ProgressBar

LIGHTNING_PRECISION = {Precision.fp32: "32-true", Precision.bf16: "bf16-mixed", Precision.fp16: "16-mixed"}
STRATEGIES = {Strategy.single: SingleStrategy, Strategy.ddp: ReplicatedStrategy, Strategy.fsdp: ShardedStrategy}
EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # rows are padded in microseconds; workers would copy the data
    ".*your dataloader is not resumable.*",  # the data module is: its order is a function of seed and epoch
    ".*srun.*",  # on a cluster the launcher is hydra's
    ".*no `val_dataloader`.*",
    ".*sync_dist=True.*",  # what is logged is that of all processes already
    ".*module\\(s\\) in eval mode at the start of training.*",  # on_train_start puts them in training mode (law 2)
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # Lightning 2.6 with torch 2.13
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Sparse invariant checks.*",  # SHiRA's changes of the weights are sparse
)


class EvaluationTime(Callback):
    """Counts an evaluation within a training as one."""

    _before = ""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Interrupt the training."""
        del trainer, pl_module
        self._before = TIMES.turn_to("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue it."""
        del trainer, pl_module
        TIMES.turn_to(self._before)


class MetricSink(Protocol):
    """Where metrics go."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at an optimizer step."""


class SinkLogger(Logger):
    """Passes Lightning's metrics on, at the optimizer step they belong to."""

    def __init__(self, sink: MetricSink) -> None:
        super().__init__()
        self.sink = sink
        self.trainer: L.Trainer | None = None

    @property
    def name(self) -> str:
        """The name Lightning shows."""
        return "sentexp"

    @property
    def version(self) -> str:
        """Unused by a sink."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics; Lightning's own count of logging steps is not kept over a resume, the optimizer's is."""
        assert self.trainer is not None
        self.sink.log_metrics({k: float(v) for k, v in metrics.items()}, self.trainer.global_step or step or 0)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the configuration is recorded by the experiment."""


def build_trainer(
    config: TrainerConfig, precision: Precision, device: torch.device, sink: MetricSink, *last: Callback
) -> L.Trainer:
    """Return a Lightning trainer for one run on one device of this process.

    Lightning sees no cluster: the processes are sentexp's (see `ReplicatedStrategy`).

    Args:
        config: the loop.
        precision: arithmetic, resolved.
        device: where to run; a GPU is the current one.
        sink: where metrics go.
        last: callbacks after the others: the one that saves must save what they have decided.
    """
    callbacks: list[Callback] = []
    if config.early_stopping_patience is not None:
        callbacks.append(
            ResumableEarlyStopping(
                monitor=config.monitor,
                mode="max" if is_better_higher(config.monitor) else "min",
                patience=config.early_stopping_patience,
            )
        )
    if config.progress_bar:
        callbacks.append(ProgressBar(device))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logger = SinkLogger(sink)
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        strategy=STRATEGIES[config.strategy](_numbered(device)),
        plugins=[LightningEnvironment()],
        precision=LIGHTNING_PRECISION[precision],  # type: ignore[arg-type]
        max_epochs=config.max_epochs,
        max_steps=config.max_steps or -1,
        accumulate_grad_batches=config.accumulate_grad_batches,
        gradient_clip_val=config.gradient_clip_val,
        log_every_n_steps=config.log_every_n_steps,
        logger=logger,
        callbacks=[EvaluationTime(), *callbacks, *last],
        enable_checkpointing=False,
        enable_progress_bar=config.progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=config.strategy is not Strategy.fsdp,  # the buffers of shards would not be trainable after it
        **_evaluation_interval(config),
    )
    logger.trainer = trainer
    return trainer


def fit(trainer: L.Trainer, module: ClassifierModule, data: DataModule, checkpoints: Checkpoints) -> None:
    """Train, from `last.ckpt` if there is one, evaluate the end of the training, and restore the best weights.

    Raises:
        OutOfMemory: a batch did not fit.
    """
    resume = _readable(checkpoints.last_file)
    with TIMES.part("training"), _quiet(), _out_of_memory():
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        if checkpoints.evaluated_at != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)
    checkpoints.restore_best(module)


def evaluate(trainer: L.Trainer, module: ClassifierModule, data: DataModule, split: str) -> dict[str, float]:
    """Return the metrics of the validation or test split by name.

    Raises:
        OutOfMemory: a batch did not fit.
    """
    run = trainer.validate if split == "validation" else trainer.test
    with TIMES.part(split), _quiet(), _out_of_memory():
        (metrics,) = run(module, datamodule=data, verbose=False)
    return dict(metrics)


def run_batches(trainer: L.Trainer, module: ClassifierModule, batches: DataLoader[Batch], stage: str) -> None:
    """Train on (`train`) or evaluate (`validation`, `test`) some batches for the sake of what it costs.

    Raises:
        OutOfMemory: a batch did not fit.
    """
    with _quiet(), _out_of_memory():
        if stage == "train":
            trainer.fit(module, train_dataloaders=batches)
        elif stage == "validation":
            trainer.validate(module, batches, verbose=False)
        else:
            trainer.test(module, batches, verbose=False)


def predict(trainer: L.Trainer, module: ClassifierModule, batches: DataLoader[Batch]) -> tuple[Tensor, Tensor]:
    """Return row numbers in order, shape (rows,), and their features, shape (rows, hidden).

    Raises:
        OutOfMemory: a batch did not fit.
    """
    with _quiet(), _out_of_memory():
        parts = trainer.predict(module, batches)
        mine = [torch.cat(part) for part in zip(*(parts or []), strict=True)]
        rows, features = (torch.cat(part) for part in zip(*processes.all_gather(mine), strict=True))
    order = rows.argsort()
    return rows[order], features[order]


def _numbered(device: torch.device) -> torch.device:
    return torch.device(device.type, torch.cuda.current_device()) if device.type == "cuda" else device


@processes.main_process_only
def _readable(checkpoint: Path) -> Path | None:
    """Return a checkpoint if it is there; a damaged one is refused before the training starts from it."""
    if not checkpoint.is_file():
        return None
    read_checkpoint(checkpoint)
    return checkpoint


def _evaluation_interval(config: TrainerConfig) -> dict[str, Any]:
    if config.eval_steps is None or config.eval_steps < 1:
        return {"val_check_interval": config.eval_steps or 1.0, "check_val_every_n_epoch": 1}
    batches = int(config.eval_steps) * config.accumulate_grad_batches
    return {"val_check_interval": batches, "check_val_every_n_epoch": None}


class _out_of_memory:  # noqa: N801 (used as a function)
    """Turns the memory errors of CUDA and of the CPU's allocator into `OutOfMemory`, in all processes."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, OutOfMemory):  # another process has told of it
            return
        if error is not None and is_out_of_memory(error):
            out_of_memory = OutOfMemory(first_line(error))
            processes.tell_out_of_memory(out_of_memory)
            raise out_of_memory from None


class _quiet(warnings.catch_warnings):  # noqa: N801 (used as a function)
    """Ignores the warnings of Lightning that are known and meant for other uses."""

    def __enter__(self) -> None:
        super().__enter__()
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
