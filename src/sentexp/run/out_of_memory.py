"""Attempts at a run with smaller batches whenever memory runs out (law 9): the effective batch stays the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from sentexp.distributed import processes
from sentexp.errors import OutOfMemory, UserError
from sentexp.run.build import keeps_dequantized
from sentexp.run.inputs import RunInputs
from sentexp.system.console import say
from sentexp.system.memory import release_memory
from sentexp.tracking.run_dir import RunDir
from sentexp.tracking.run_logger import RunLogger
from sentexp.training.batch_plan import BatchPlan
from sentexp.training.checkpoint import remove_checkpoints

T = TypeVar("T")


def with_smaller_batches(attempt: Callable[[BatchPlan], T], inputs: RunInputs, logger: RunLogger, run_dir: RunDir) -> T:
    """Attempt a run again whenever memory runs out: first with weights that stay packed, then with less at once.

    Half the micro-batch goes with twice the accumulation. This process begins with what an earlier one found to fit.

    Raises:
        UserError: the batches cannot be halved any more.
    """
    trainer = inputs.config.trainer
    batches = BatchPlan.of(replace(trainer, **run_dir.state.get("fits", {})))
    batches = replace(batches, keeps_dequantized=keeps_dequantized(inputs) and not run_dir.state.get("stays_packed"))
    longest = int(inputs.tokens["train"].lengths.max())
    least = processes.world_size() if trainer.max_tokens is None else 2 * longest
    while True:
        try:
            return attempt(batches)
        except OutOfMemory as error:
            smaller = batches.packed() or batches.halved(least)
            if smaller is None:
                raise UserError(
                    f"Out of memory at trainer.{trainer.fills_by}={batches.micro_batch}, which cannot be halved "
                    f"({error}): use a smaller model, peft=qlora, a shorter data.max_length, or "
                    "trainer.gradient_checkpointing=true."
                ) from None
            was_packed, batches = not batches.keeps_dequantized, smaller
        release_memory()  # outside of the handler, which holds the frames of the attempt
        run_dir.save_state(fits=batches.reduced, stays_packed=True)
        remove_checkpoints(run_dir.path)
        unit = "rows" if batches.max_tokens is None else "tokens"
        note = f"batches of {batches.micro_batch} {unit}, accumulated {batches.accumulate_grad_batches} times"
        note = note if was_packed else "packed weights (model.keep_dequantized=false)"
        say(f"Out of memory: starting again with {note}; the effective batch is the same.")
        logger.set_tags({"out_of_memory": note})
