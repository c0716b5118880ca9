"""What the progress bar of a training shows."""

import re
from types import SimpleNamespace

from sentexp.run.train import train
from sentexp.system.console import duration
from sentexp.training import progress_bar
from sentexp.training.module import ClassifierModule


def test_the_bar_shows_loss_learning_rate_and_speed(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # else the end of a long line is cut
    train(config("peft=lora", "optim.lr=1e-3", "optim.schedule=constant", "optim.warmup_steps=0", "baseline=false",
                 "trainer.max_epochs=1", "trainer.progress_bar=true"))  # fmt: skip
    shown = capsys.readouterr().out
    last = shown.rpartition("Epoch 0: 100%")[2]
    assert re.search(r"loss=\d\.\d{3}", last)
    assert "lr=1.00e-03" in last
    assert re.search(r"rows/s=[\d,]+\.\d", last)
    assert "v_num" not in shown
    assert "left=" not in shown  # the bar itself says so


def test_the_time_left_is_that_of_all_epochs(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    now = {"now": 0.0}
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(monotonic=lambda: now["now"]))
    step = ClassifierModule.training_step

    def ten_minutes(*given):
        now["now"] += 600
        return step(*given)

    monkeypatch.setattr(ClassifierModule, "training_step", ten_minutes)
    result = train(config("peft=head", "baseline=false", "trainer.max_epochs=3", "trainer.progress_bar=true"))
    steps = int(result.metrics["train/steps"])
    shown = capsys.readouterr().out
    assert f"left={duration(600 * (steps - steps // 3))}" in shown.partition("Epoch 1")[0]
