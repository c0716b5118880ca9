"""Recorded steps, on the CPU: a substitute for a CUDA graph repeats the work on the tensors that were recorded."""

import json

import pytest
import torch
from repetition import Repetition
from rounding import drift, rounding, smooth
from torch.utils._python_dispatch import TorchDispatchMode

from sentexp.config import load_config
from sentexp.run.train import train
from sentexp.training import recorded_steps
from sentexp.training.module import ClassifierModule

LR, EPS = 1e-2, 1e-2
WORDS = (
    f"optim.lr={LR}", f"optim.eps={EPS}", "trainer.max_epochs=6", "trainer.monitor=validation/loss",
    "trainer.gradient_clip_val=0.05", "trainer.log_every_n_steps=1", "trainer.eval_batch_size=4",
)  # fmt: skip
ANSWERS = ("task=causal_lm", "task.template=auto", "task.label_words=[bad,good]", "baseline=false")


class Unreliable(Repetition):
    """Gives other numbers than the work."""

    def replay(self):
        """Do the work again, and spoil it."""
        outputs = super().replay()
        if not isinstance(outputs, recorded_steps.Step):
            return outputs
        return outputs._replace(gradients=[gradient * 1.01 for gradient in outputs.gradients])


def metrics_of(result):
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], name): value for row in rows for name, value in smooth(row).items()}


def slow(*words):
    return pytest.param(words, marks=pytest.mark.slow)


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    "extra",
    [
        ("peft=lora",),
        slow("peft=lora", "optim.schedule=cosine", "data.class_weights=[1,3]", "task.focal_gamma=1"),
        slow("peft=dora", "trainer.batch_size=3"),
        slow("peft=qlora", "trainer.max_tokens=400"),
        ("peft=lora", *ANSWERS),
        slow("peft=lora", *ANSWERS, "task.loss=full"),
        slow("peft=lora", *ANSWERS, "task.loss=label_words", "task.label_words=[no good,good]"),
    ],
    ids=["lora", "weighed", "dora", "tokens", "answers", "full loss", "branches"],
)
def test_a_run_of_recorded_steps_is_the_run_of_usual_ones(config, tmp_path, extra):
    found = {}
    for graphs in ("true", "false"):
        folder = f"output_dir={tmp_path / graphs}"
        found[graphs] = train(config(*WORDS, "peft.dropout=0.0", *extra, f"trainer.cuda_graphs={graphs}", folder))
        assert Repetition.count > 8  # in the first run
    steps = int(found["true"].metrics["train/steps"])
    tolerance = rounding() + drift(LR, steps, EPS)
    assert found["true"].identity == found["false"].identity
    assert metrics_of(found["true"]) == pytest.approx(metrics_of(found["false"]), abs=tolerance)
    assert smooth(found["true"].metrics) == pytest.approx(smooth(found["false"].metrics), abs=tolerance)
    losses = [value for (_, name), value in metrics_of(found["false"]).items() if name == "train/loss"]
    assert max(losses) - min(losses) > 10 * tolerance


@pytest.mark.usefixtures("recording")
def test_a_killed_run_goes_on_with_recorded_steps(config, tmp_path, interrupted_at):
    words = (*WORDS, "peft=lora", "peft.dropout=0.2", "trainer.save_steps=5")
    whole = train(config(*words, f"output_dir={tmp_path / 'whole'}"))
    with interrupted_at(13):
        train(config(*words, f"output_dir={tmp_path / 'killed'}"))
    resumed = train(config(*words, f"output_dir={tmp_path / 'killed'}"))
    assert smooth(resumed.metrics) == pytest.approx(smooth(whole.metrics), abs=rounding() + drift(LR, 24, EPS))
    assert resumed.metrics["train/steps"] == whole.metrics["train/steps"]


def test_a_recording_that_gives_other_numbers_is_not_used(config, tmp_path, recording, capsys):
    usual = train(config(*WORDS, "peft=lora", "trainer.cuda_graphs=false", f"output_dir={tmp_path / 'usual'}"))
    recording(Unreliable)
    result = train(config(*WORDS, "peft=lora", f"output_dir={tmp_path / 'other'}"))
    sentence = "CUDA graphs are off: the gradients of a replayed step would differ from the usual."
    assert sentence in capsys.readouterr().out.replace("\n", " ")
    assert smooth(result.metrics) == pytest.approx(smooth(usual.metrics), abs=rounding() + drift(LR, 24, EPS))


def test_a_recording_that_fails_leaves_the_usual_way(config, recording, capsys):
    def broken(work, pool, generators):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nand more")

    recording(broken)
    result = train(config(*WORDS, "peft=lora"))
    assert result.metrics["train/steps"] == 24
    assert "CUDA graphs are off: recording failed: CUDA out of memory." in capsys.readouterr().out.replace("\n", " ")


def test_the_learning_rate_of_each_step_is_that_of_the_schedule(config, recording, monkeypatch):
    seen = []
    original = recorded_steps.Learner.update

    def update(self):
        groups = self.optimizer.param_groups
        seen.append([float(group["lr"]) for group in groups])
        # A number would be that of the step at which it was recorded, for ever.
        assert all(isinstance(group["lr"], torch.Tensor) and group["capturable"] for group in groups) or len(seen) == 1
        original(self)

    monkeypatch.setattr(recorded_steps.Learner, "update", update)
    train(config(*WORDS, "peft=lora", "optim.schedule=linear", "optim.warmup_steps=0", "optim.head_lr=0.5"))
    rates = [max(rates) for rates in seen[2:]]  # the first two are the check
    assert len(rates) > 8
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 2 * rates[-1]
    assert all(len(set(rates)) == 2 for rates in seen)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([], "this run is on the CPU, which has none"),
        (["peft=full"], "peft=full is none of LoRA, QLoRA and DoRA"),
        (["optim=sgd"], "optim=sgd is not adamw"),
        (["trainer=ddp"], "trainer=ddp has several processes"),
        (["task.r_drop=1"], "task.r_drop reads every batch twice"),
        (["task.neftune_alpha=5"], "task.neftune_alpha draws noise for it"),
        (["trainer.unfreeze=0.5"], "trainer.unfreeze changes what trains"),
        (["optim=lion"], "optim=lion is not adamw"),
        (["trainer.padding_free=false"], "trainer.padding_free=false pads rows"),
        (["trainer.compile=true"], "trainer.compile=true compiles them"),
        (["trainer.gradient_checkpointing=true"], "trainer.gradient_checkpointing=true computes some of them again"),
        (["trainer.accumulate_grad_batches=4"], "trainer.accumulate_grad_batches=4 makes a step of several batches"),
        (["trainer.precision=fp16"], "trainer.precision=fp16 scales losses by what came of the last step"),
    ],
)
def test_what_cannot_be_recorded_is_named(extra, reason):
    from sentexp.errors import UserError
    from sentexp.run.cuda_graphs import uses_cuda_graphs

    device = torch.device("cuda" if extra else "cpu")
    with pytest.raises(UserError, match=f"^trainer.cuda_graphs=true records the kernels of a step, and {reason}: "):
        uses_cuda_graphs(load_config("model=tiny", "peft=lora", *extra, "trainer.cuda_graphs=true"), device, "llama")
    assert not uses_cuda_graphs(load_config("model=tiny", "peft=lora", *extra), device, "llama")


class Reads(TorchDispatchMode):
    """Counts the values that Python reads from tensors: on a GPU each waits until all that was launched is done."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_nothing_is_read_from_the_gpu_between_the_losses_that_are_recorded(config, monkeypatch, graphs):
    reads, original = Reads(), ClassifierModule.on_train_batch_start

    def begin(self, batch, batch_idx):
        if self.trainer.global_step == 5:  # the second of the four steps of the second epoch
            reads.__enter__()
        elif self.trainer.global_step == 7:
            reads.__exit__(None, None, None)
        original(self, batch, batch_idx)

    logged, log = {}, ClassifierModule.log

    def note(self, name, value, **options):
        logged.setdefault(name, []).append(value)
        log(self, name, value, **options)

    monkeypatch.setattr(ClassifierModule, "on_train_batch_start", begin)
    monkeypatch.setattr(ClassifierModule, "log", note)
    words = ("trainer.log_every_n_steps=4", "trainer.max_steps=10", "trainer.eval_steps=1000", "trainer.max_epochs=6")
    given = [word for word in WORDS if word.partition("=")[0] not in {word.partition("=")[0] for word in words}]
    train(config(*given, *words, "peft=lora", "baseline=false", f"trainer.cuda_graphs={graphs}"))
    assert (Repetition.count > 3) is (graphs == "true")
    assert reads.count == 0
    values = [value for name, own in logged.items() if name.startswith("train/") for value in own]
    assert len(values) == 4  # in two of ten steps the loss and the speed; to log them takes as long in others
    assert all(isinstance(value, torch.Tensor) for value in values)  # Lightning copies numbers to the GPU, and waits
