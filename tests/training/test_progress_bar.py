"""What the progress bar of a training shows."""

import re

from sentexp.run.train import train


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
