"""`task=causal_lm` from end to end: every way of training, what is recorded, what is saved, resuming, calibration."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from peft import PeftModel
from rounding import drift, rounding
from transformers import AutoModelForCausalLM, AutoTokenizer

from sentexp.config import load_config
from sentexp.data.splits import load_examples
from sentexp.errors import UserError
from sentexp.metrics.calibration import fit_temperature
from sentexp.models.label_scorer import label_prior, without_prior
from sentexp.models.pretrained import locate_backbone
from sentexp.run import summary
from sentexp.run.train import train
from sentexp.training.module import ClassifierModule

ANSWERING = ["task=causal_lm", "task.template=auto", "task.label_words=[bad,good]", "baseline=false"]
RECORDED = ["tracking=mlflow", "tracking.system_metrics=false"]
STEADY = ["optim.schedule=constant", "optim.warmup_steps=0"]


def near(found, expected):
    """Compare tensors, each up to the rounding of its largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(max(1.0, float(expected.abs().max()))))


@pytest.fixture
def answer(config):
    """Return a function that runs an answering configuration."""
    return lambda *overrides: train(config(*ANSWERING, *overrides))


@pytest.fixture
def evaluations(monkeypatch):
    """Return what the modules said about the test rows, in the order of the runs."""
    seen = []
    original = summary.count_answers
    monkeypatch.setattr(summary, "count_answers", lambda *given: seen.append(given[1]) or original(*given))
    return seen


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dora", "full", "ia3", "qlora"))]
)
@pytest.mark.parametrize("loss", ["answer", "label_words", "full"])
def test_every_way_of_training_lowers_every_loss(answer, method, loss):
    result = answer(f"peft={method}", f"task.loss={loss}", "optim.lr=1e-2", "trainer.max_epochs=4", *STEADY)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    curve = [row["train/loss"] for row in rows if "train/loss" in row]
    first, last = sum(curve[:4]), sum(curve[-4:])  # of the same rows, once in each epoch
    assert last < first - 10 * rounding(first)


@pytest.mark.slow
def test_training_on_answers_brings_the_mass_to_the_labels(answer):
    """Rounding decides how far a training comes: over seeds, rates and threads a quarter of the mass may stay out."""
    base = answer("peft=none").metrics
    tuned = answer("peft=full", "optim.lr=3e-3", "trainer.max_epochs=32", "trainer.eval_steps=128", *STEADY).metrics
    assert base["test/off_label_mass"] > 0.99
    assert base["test/irregular_outputs"] == 8
    assert max(tuned["test/off_label_mass"], tuned["best/off_label_mass"]) < 0.5
    assert tuned["test/irregular_outputs"] <= 4


def test_what_a_model_answers_is_counted_and_recorded(answer, store, capsys):
    result = answer("peft=none", "task.generate=true", "plots=true", *RECORDED, f"tracking.uri={store}")
    assert sum(eval_counter(result.answers["irregular_outputs"]).values()) == 8
    assert result.metrics["test/irregular_generations"] == sum(
        eval_counter(result.answers["irregular_generations"]).values()
    )
    assert 0 <= result.metrics["test/generated_accuracy"] <= 1
    mine = MlflowClient(store).get_run(result.run_id)
    assert mine.data.tags["irregular_outputs"] == result.answers["irregular_outputs"]
    assert mine.data.metrics["test/off_label_mass"] == result.metrics["test/off_label_mass"]
    output = capsys.readouterr().out
    assert f"irregular outputs by first token: {result.answers['irregular_outputs']}" in output
    prompt = Path(MlflowClient(store).download_artifacts(result.run_id, "prompt.txt")).read_text()
    assert prompt == "Text: {text}\nSentiment: "
    assert {"reliability.png", "adapter", "prompt"} & {
        item.path for item in MlflowClient(store).list_artifacts(result.run_id)
    } == {"reliability.png", "prompt"}


def eval_counter(text):
    import ast

    return ast.literal_eval(text.removeprefix("Counter(").removesuffix(")") or "{}")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft 0.21 with transformers 5.23
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "full"])
def test_what_was_trained_gives_the_same_likelihoods_without_sentexp(answer, config, method, evaluations):
    result = answer(f"peft={method}", "optim.lr=1e-2", "trainer.max_epochs=2")
    facts = json.loads((result.weights / "sentexp.json").read_text())
    folder = locate_backbone(load_config("model=tiny").model).folder
    model = AutoModelForCausalLM.from_pretrained(result.weights if method == "full" else folder, dtype=torch.float32)
    if method != "full":
        model = PeftModel.from_pretrained(model, result.weights)
    tokenizer, prompt = AutoTokenizer.from_pretrained(result.weights), facts["prompt"]
    texts = load_examples(config().data).test.column("text").to_pylist()
    for row, text in enumerate(texts):
        ids = tokenizer(prompt["head"] + text + prompt["tail"])["input_ids"] + prompt["lead"]
        for label, answer_ids in enumerate(prompt["answers"]):
            with torch.no_grad():
                likely = model.eval()(torch.tensor([ids + answer_ids])).logits[0].log_softmax(-1)
            score = sum(float(likely[len(ids) + i - 1, token]) for i, token in enumerate(answer_ids))
            assert float(evaluations[0].logits[row, label]) == pytest.approx(score, abs=rounding(abs(score)))
    assert prompt["words"] == ["bad", "good"]
    assert facts["temperature"] == result.metrics["temperature"]
    assert facts["prior"] is None
    assert not list(result.weights.glob("*.bin"))


def test_a_run_that_was_killed_ends_with_the_numbers_of_one_that_was_not(answer, tmp_path, monkeypatch):
    steps = ["trainer.save_steps=1", "trainer.max_epochs=2", "peft.dropout=0.2", "task.calibration=batch"]
    whole = answer(*steps, f"output_dir={tmp_path / 'whole'}")
    original = ClassifierModule.training_step
    calls = []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ClassifierModule, "training_step", step)
        answer(*steps)
    resumed = answer(*steps)
    for name in ("test/loss", "test/accuracy", "test/off_label_mass", "temperature", "best/step"):
        assert resumed.metrics[name] == whole.metrics[name], name


@pytest.mark.slow
def test_accumulation_does_not_change_the_loss_of_a_step(answer, tmp_path):
    for loss in ("answer", "full"):
        found = [
            answer(
                f"task.loss={loss}", f"trainer.batch_size={size}", f"trainer.accumulate_grad_batches={parts}",
                f"output_dir={tmp_path / loss / str(size)}", "optim.lr=1e-3", "optim.eps=1e-2",
            ).metrics["test/loss"]
            for size, parts in ((8, 1), (2, 4))
        ]  # fmt: skip
        assert found[0] == pytest.approx(found[1], abs=rounding(found[1]) + drift(1e-3, 4, eps=1e-2))


@pytest.mark.slow
def test_class_weights_and_gamma_reach_the_answers(answer, tmp_path):
    plain = answer(f"output_dir={tmp_path / 'plain'}", "optim.lr=1e-2").metrics["test/loss"]
    for change in ("data.class_weights=[1,9]", "task.focal_gamma=2"):
        assert answer(change, "optim.lr=1e-2").metrics["test/loss"] != plain


def test_batch_calibration_takes_the_prior_of_the_validation_rows(answer, evaluations, monkeypatch):
    kept = []
    original = ClassifierModule.keep_validation
    monkeypatch.setattr(
        ClassifierModule, "keep_validation", lambda self, *given: kept.append(given) or original(self, *given)
    )
    plain = answer("peft=none").metrics
    corrected = answer("peft=none", "task.calibration=batch").metrics
    expected = without_prior(evaluations[0].logits, label_prior(kept[0][0]))
    near(evaluations[1].logits, expected)
    assert corrected["test/off_label_mass"] == plain["test/off_label_mass"]
    assert corrected["test/loss"] < plain["test/loss"] - rounding(plain["test/loss"])


def test_batch_calibration_takes_the_validation_rows_of_the_best_checkpoint(answer, monkeypatch, worsening):
    """The last evaluation is not the best one here: the prior must be that of the weights that are tested."""
    seen = []
    original = ClassifierModule.on_test_epoch_end
    monkeypatch.setattr(ClassifierModule, "on_test_epoch_end", lambda self: seen.append(self) or original(self))
    worsening(lambda module: module.trainer.global_step > 1)
    words = ("task.calibration=batch", "trainer.eval_steps=1", "trainer.monitor=validation/loss", "optim.lr=3e-2")
    result = answer(*words, *STEADY)
    (module,) = seen
    tested = module.prior
    with torch.no_grad():
        rows = list(module.trainer.datamodule.val_dataloader())
        logits = torch.cat([module.classifier(batch.texts).logits for batch in rows])
    near(tested, label_prior(logits))
    assert (result.metrics["best/step"], result.metrics["train/steps"]) == (1, 4)


def test_contextual_calibration_takes_the_prior_of_texts_that_say_nothing(answer, evaluations, config):
    answer("peft=none")
    answer("peft=none", "task.calibration=contextual")
    folder = locate_backbone(load_config("model=tiny").model).folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = [tokenizer(word)["input_ids"] for word in ("bad", "good")]
    scores = []
    for text in ("N/A", "[MASK]", ""):
        ids = tokenizer(f"Text: {text}\nSentiment: ")["input_ids"]
        with torch.no_grad():
            likely = [model(torch.tensor([ids + word])).logits[0].log_softmax(-1) for word in words]
        scores.append(
            [
                sum(float(like[len(ids) + i - 1, token]) for i, token in enumerate(word))
                for like, word in zip(likely, words, strict=True)
            ]
        )
    expected = without_prior(evaluations[0].logits, label_prior(torch.tensor(scores)))
    near(evaluations[1].logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch", "contextual"])
def test_the_prior_is_saved_with_the_weights(answer, evaluations, kind):
    answer("optim.lr=1e-2")
    result = answer("optim.lr=1e-2", f"task.calibration={kind}")
    prior = torch.tensor(json.loads((result.weights / "sentexp.json").read_text())["prior"])
    near(evaluations[1].logits, without_prior(evaluations[0].logits, prior))


def test_a_prompt_without_words_cannot_be_calibrated_by_texts_that_say_nothing(answer):
    bare = "task.template={user: '{text}', chat_template: '{% for m in messages %}{{ m.content }}{% endfor %}'}"
    with pytest.raises(UserError, match=r"task.calibration=contextual shows the model an empty text"):
        answer("task.calibration=contextual", bare)


def test_answers_are_written_within_the_positions_of_the_model(config, tmp_path, vocabulary):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = vocabulary("gpt2")
    size = {"vocab_size": len(tokenizer), "eos_token_id": len(tokenizer) - 1}
    tokenizer.save_pretrained(tmp_path / "gpt2")
    GPT2LMHeadModel(GPT2Config(n_positions=48, n_embd=8, n_layer=1, n_head=2, **size)).save_pretrained(
        tmp_path / "gpt2"
    )
    rows = "\n".join(f"{'a very long story about a film ' * 20} {i},{i % 2}" for i in range(40))
    (tmp_path / "x.csv").write_text(f"sentence,label\n{rows}\n")
    data = [f"data.path={tmp_path / 'x.csv'}", "data.splits.validation=null", "data.splits.test=null"]
    model = [f"model.path={tmp_path / 'gpt2'}", "data.max_length=48", "data.validation_fraction=0.2"]
    result = train(config(*ANSWERING, *data, *model, "task.generate=true", "trainer.max_steps=1"))
    assert "test/generated_accuracy" in result.metrics


@pytest.mark.draws
def test_the_temperature_is_fitted_on_validation_and_told_for_the_test_split(answer, evaluations, monkeypatch):
    kept = []
    original = ClassifierModule.keep_validation
    monkeypatch.setattr(ClassifierModule, "keep_validation", lambda *given: kept.append(given[1:]) or original(*given))
    result = answer("optim.lr=1e-2", "trainer.max_epochs=3", "plots=true")
    logits, targets = evaluations[0].logits, evaluations[0].targets
    cooled = torch.nn.functional.cross_entropy(logits / result.metrics["temperature"], targets)
    assert result.metrics["test/loss_calibrated"] == pytest.approx(float(cooled), abs=rounding())
    assert result.metrics["temperature"] == fit_temperature(*kept[-1])  # of the best checkpoint
    assert result.metrics["temperature"] != fit_temperature(logits, targets)
    assert (result.folder / "reliability.png").stat().st_size > 5000
    assert set(result.reliability) == {"as it is", f"at temperature {result.metrics['temperature']:.2f}"}


@pytest.mark.slow
def test_long_texts_lose_their_end_and_are_counted(config, tmp_path, llama, capsys):
    """The instruction and the answer's place stay, and what the model can read is not exceeded."""
    model = [f"model.path={llama}", "task.label_words=[down,up]", "data.max_length=512"]
    rows = "\n".join(f"{'a very long story about a film ' * (1 + 90 * (i % 2))} {i},{i % 2}" for i in range(60))
    (tmp_path / "x.csv").write_text(f"sentence,label\n{rows}\n")
    data = [f"data.path={tmp_path / 'x.csv'}", "data.splits.validation=null", "data.splits.test=null"]
    carve = ["data.validation_fraction=0.2", "data.test_fraction=0.2", "trainer.max_steps=1"]
    result = train(config(*ANSWERING, "task.system='Say {labels}.'", *model, *data, *carve))
    assert result.metrics["train/steps"] == 1
    output = capsys.readouterr().out
    assert "50.0%" in output
    assert "Texts are cut at 4" in output


def test_what_the_prompt_leaves_no_room_for_is_refused(answer, llama):
    model = [f"model.path={llama}", "data.max_length=512"]
    with pytest.raises(UserError, match=r"task.template leaves no room for the text: the prompt has [\d,]+ tokens"):
        answer(*model, f"task.system='{'Say {labels}. ' * 200}'")


def test_other_labels_need_words_of_their_own(config, tmp_path):
    rows = "\n".join(f"text number {i},{('very bad', 'very good')[i % 2]}" for i in range(60))
    (tmp_path / "x.csv").write_text(f"sentence,label\n{rows}\n")
    data = ["data=csv", f"data.path={tmp_path / 'x.csv'}", "data.text=sentence"]
    settings = ["model=tiny", "task=causal_lm", "tracking=none", f"output_dir={tmp_path}", "trainer.progress_bar=false"]
    with pytest.raises(UserError, match=r"'very bad' and 'very good' begin with the same token"):
        train(load_config(*data, *settings))
    words = "task.label_words={very bad: bad, very good: good}"
    assert (
        train(load_config(*data, *settings, words, "trainer.max_steps=1", "baseline=false")).metrics["train/steps"] == 1
    )


def test_the_resolved_prompt_is_recorded_and_makes_the_same_run(answer, config):
    from omegaconf import OmegaConf

    result = answer("trainer.max_steps=1")
    written = OmegaConf.load(result.folder / "config.yaml")
    assert written.task.template.user == "Text: {text}\nSentiment:"
    file = result.folder.parent / "template.yaml"
    OmegaConf.save(written.task.template, file)
    assert answer("trainer.max_steps=1", f"task.template={file}").identity == result.identity
    assert answer("trainer.max_steps=1", "task.template='{text}'").identity != result.identity
