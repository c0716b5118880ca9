"""Attempts at a run with smaller batches whenever memory runs out (law 9): the effective batch stays the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from sentexp.distributed import processes
from sentexp.errors import OutOfMemory, UserError
from sentexp.run.inputs import RunInputs
from sentexp.system.console import say
from sentexp.system.memory import release_memory
from sentexp.tracking.run_dir import RunDir
from sentexp.tracking.run_logger import RunLogger
from sentexp.training.batch_plan import BatchPlan
from sentexp.training.checkpoint import remove_checkpoints

T = TypeVar("T")


def with_smaller_batches(attempt: Callable[[BatchPlan], T], inputs: RunInputs, logger: RunLogger, run_dir: RunDir) -> T:
    """Attempt a run, at half the micro-batch and double the accumulation whenever memory runs out.

    What an earlier process found to fit is where this one begins.

    Raises:
        UserError: the batches cannot be halved any more.
    """
    trainer = inputs.config.trainer
    batches = BatchPlan.of(replace(trainer, **run_dir.state.get("fits", {})))
    longest = int(inputs.tokens["train"].lengths.max())
    least = processes.world_size() if trainer.max_tokens is None else 2 * longest
    while True:
        try:
            return attempt(batches)
        except OutOfMemory as error:
            smaller = batches.halved(least)
            if smaller is None:
                raise UserError(
                    f"Out of memory at trainer.{trainer.fills_by}={batches.micro_batch}, which cannot be halved "
                    f"({error}): use a smaller model, peft=qlora, a shorter data.max_length, or "
                    "trainer.gradient_checkpointing=true."
                ) from None
            batches = smaller
        release_memory()  # outside of the handler, which holds the frames of the attempt
        run_dir.save_state(fits=batches.reduced)
        remove_checkpoints(run_dir.path)
        unit = "rows" if batches.max_tokens is None else "tokens"
        note = f"batches of {batches.micro_batch} {unit}, accumulated {batches.accumulate_grad_batches} times"
        say(f"Out of memory: starting again with {note}; the effective batch is the same.")
        logger.set_tags({"out_of_memory": note})
