"""A run that is killed in the middle of its training, inside the process of a test."""

from sentexp.training.module import ClassifierModule


class Killed(BaseException):
    """What stands for a kill inside a test: nothing of ours catches it to tidy up."""


def killed_at(monkeypatch, micro_batch):
    """Raise at the end of a micro-batch, counted over the whole training."""
    original = ClassifierModule.training_step

    def step(self, batch, batch_idx):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == micro_batch:
            raise Killed
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ClassifierModule, "training_step", step)
