"""The protocol as a whole: the round trip through PEFT alone (law 3), memory (law 8), and faults of the input."""

import gc
import json
import os
import subprocess
import sys
from zipfile import ZipFile

import pytest
import torch
from mlflow import MlflowClient
from rounding import drift, rounding, smooth
from safetensors.torch import save_file

from sentexp.compare.metric_sums import measured
from sentexp.config import load_config
from sentexp.config.metric_names import METRICS
from sentexp.data.batch import pad
from sentexp.errors import UserError
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone
from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.run import build, fitting, plotting, summary
from sentexp.run import train as training
from sentexp.run.audit import audit
from sentexp.run.cache import clear_cache
from sentexp.run.inputs import resolve_inputs, tokenize_splits
from sentexp.run.plotting import PLOTS, plot_finished, plots_of
from sentexp.run.train import train
from sentexp.system.memory import KERNEL_CACHES
from sentexp.tracking.predictions import file_name, read_predictions, read_rows

TEXTS = ["a warm and funny film", "a cold and clumsy film that wastes its cast", "fine"]

RELOAD = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, out, *folders = map(Path, sys.argv[1:])
said = {}
for weights in folders:
    facts = json.loads((weights / "sentexp.json").read_text())
    where = weights if weights.name == "model" else base
    model = AutoModelForSequenceClassification.from_pretrained(where, num_labels=2, dtype=torch.float32)
    if weights.name == "adapter":
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, weights)
    if weights.name == "head":
        model.load_state_dict(load_file(weights / "head.safetensors"), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model.config.pad_token_id = tokenizer.pad_token_id
    head, tail = facts["prompt"]["head"], facts["prompt"]["tail"]
    batch = tokenizer([head + t + tail for t in TEXTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        said[facts["identity"]] = model.eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
save_file(said, out)
""".replace("TEXTS", repr(TEXTS))


@pytest.mark.slow
def test_what_was_trained_loads_in_a_fresh_process_without_sentexp(config, tmp_path, monkeypatch, command_environment):
    trained = []
    original = fitting.save_trained

    def save(model, *rest):
        trained.append(model)
        return original(model, *rest)

    monkeypatch.setattr(fitting, "save_trained", save)
    framed = [f"{text} It was" for text in TEXTS]
    results, here = {}, {}
    for method in ("lora", "dora", "ia3", "head", "full", "none"):
        settings = config(f"peft={method}", "optim.lr=3e-2", "task.template='{text} It was'", "trainer.max_epochs=2")
        results[method] = train(settings)
        backbone = locate_backbone(settings.model)
        tokenizer = load_tokenizer(backbone)
        with torch.no_grad():
            here[method] = SequenceClassifier(trained.pop().eval())(
                pad(tokenizer(framed)["input_ids"], tokenizer.pad_token_id, "right")
            ).logits
    out = tmp_path / "logits.safetensors"
    arguments = [str(backbone.folder), str(out), *(str(result.weights) for result in results.values())]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, *arguments], env=command_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    said = load_file(out)
    assert len(said) == len(results)
    for method, result in results.items():
        limit = rounding(max(1.0, float(here[method].abs().max())))
        torch.testing.assert_close(
            said[result.identity], here[method], atol=limit, rtol=0, msg=lambda text, name=method: f"{name}: {text}"
        )
        assert not list(result.weights.glob("*.bin"))


def test_few_kernels_are_kept_from_before_the_first_product(config, monkeypatch):
    kept, original = [], training.resolve_inputs

    def resolve(*given):
        kept.append([os.environ.get(name) for name in KERNEL_CACHES])
        return original(*given)

    for name in KERNEL_CACHES:
        monkeypatch.setenv(name, "1024")  # so that it is as before in the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(training, "resolve_inputs", resolve)
    train(config("trainer.max_steps=1"))
    assert kept == [["64"] * len(KERNEL_CACHES)]


def test_one_backbone_is_in_memory_at_a_time(config, monkeypatch):
    alive = []
    original = build.load_classifier

    def load(*arguments, **options):
        gc.collect()
        alive.append(sum(type(item).__name__ == "LlamaForSequenceClassification" for item in gc.get_objects()))
        return original(*arguments, **options)

    monkeypatch.setattr(build, "load_classifier", load)
    for rank in (2, 4, 8):
        train(config(f"peft.r={rank}"))
    assert alive == [alive[0]] * 3


def test_the_folder_of_a_finished_run_holds_its_result_and_no_checkpoint(train):
    result = train("peft=lora", "plots=true")
    names = {path.name for path in result.folder.iterdir()}
    assert {
        "config.yaml",
        "result.json",
        "metrics.jsonl",
        "learning_curve.png",
        "confusion_matrix.png",
        "data_audit.json",
        "data_audit.png",
        "adapter",
    } <= names
    assert not {"last.ckpt", "best.safetensors", "state.json"} & names
    written = json.loads((result.folder / "result.json").read_text())
    assert written["metrics"] == result.metrics
    assert sum(sum(row) for row in written["confusion"]) == 8
    assert written["parameters"]["trainable"]["head"] == 128
    assert len(written["parameters"]["targets"]) == 14


def test_the_confusion_matrix_agrees_with_the_accuracy(train):
    result = train("peft=lora", "optim.lr=1e-2", "trainer.max_epochs=4")
    right = sum(result.confusion[index][index] for index in range(2))
    assert result.metrics["test/accuracy"] == pytest.approx(right / 8)


@pytest.fixture
def killed(config, monkeypatch):
    """Return the configuration of a run that was interrupted after its training, and its folder."""
    settings = config("peft=lora")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "save_trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(settings)
    (file,) = settings_folder(settings).glob("*/last.ckpt")
    return settings, file.parent


def change_in_the_middle(file, part):
    """Change one bit in the middle of some bytes that a file holds."""
    data = bytearray(file.read_bytes())
    data[data.index(part) + len(part) // 2] ^= 4
    file.write_bytes(data)


def change_entry(file, which):
    """Change one bit of an entry of an archive."""
    with ZipFile(file) as archive:
        entries = [archive.read(entry) for entry in archive.namelist() if which in entry]
    change_in_the_middle(file, max(entries, key=len))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"not a checkpoint"),
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: change_entry(file, "data.pkl"),
        lambda file: change_entry(file, "data/"),  # a tensor: torch.load would not notice
    ],
    ids=["other", "cut", "object", "tensor"],
)
def test_a_damaged_checkpoint_is_named(damage, killed):
    settings, folder = killed
    damage(folder / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt cannot be read .*: delete it"):
        train(settings)


def test_best_weights_that_were_damaged_are_not_tested(killed):
    settings, folder = killed
    file = folder / "best.safetensors"
    change_in_the_middle(file, file.read_bytes()[-100:])  # a tensor: nothing else would notice
    with pytest.raises(UserError, match=r"best.safetensors is damaged, .*: remove .*, and give the command again"):
        train(settings)


def settings_folder(settings):
    from pathlib import Path

    return Path(settings.output_dir)


def test_more_positions_than_the_model_has_are_refused(config, llama):
    with pytest.raises(UserError, match=r"data.max_length=513 is more than the 512 positions"):
        train(config(f"model.path={llama}", "data.max_length=513"))


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_llama_in_a_local_folder_trains(train, llama, method):
    result = train(f"model.path={llama}", f"peft={method}", "trainer.max_epochs=2")
    assert result.metrics["train/steps"] == 8


def test_bf16_trains_beside_float32_adapters(train):
    result = train("peft=lora", "trainer.precision=bf16", "trainer.max_epochs=2")
    assert 0 < result.metrics["best/loss"] < 2


def test_a_folder_with_damaged_weights_is_named(config, tmp_path):
    backbone = locate_backbone(config().model)
    for file in backbone.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match=r"cannot be loaded"):
        train(config(f"model.path={tmp_path}"))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights"):
        train(config(f"model.path={tmp_path}"))


def write_regions(reviews, folder):
    """Write the reviews with a region; the test split gets a row of train, and one of its own again."""
    rows = {name: (reviews / f"{name}.tsv").read_text().splitlines()[1:] for name in ("train", "validation", "test")}
    rows["test"] += [rows["train"][0], rows["test"][1]]
    for name, lines in rows.items():
        regions = [line.replace("\t", ",") + (",north/west" if n % 3 else ",süd") for n, line in enumerate(lines)]
        (folder / f"{name}.csv").write_text("body,stars,region\n" + "\n".join(regions) + "\n")


def test_slices_and_duplicate_free_rows_have_metrics_of_their_own(config, reviews, tmp_path, capsys, store):
    write_regions(reviews, tmp_path)
    words = ["data.text=body", "data.label=stars", "data.slices=region", f"data.path={tmp_path}"]
    tracked = ("tracking=mlflow", f"tracking.uri={store}", "tracking.system_metrics=false", "plots=true")
    result = train(config(*words, *tracked))
    metrics = result.metrics
    assert metrics["test/duplicate_free/rows"] == 8
    assert metrics["test/region/north_west/rows"] + metrics["test/region/süd/rows"] == 10
    weighted = sum(
        metrics[f"test/region/{n}/rows"] * metrics[f"test/region/{n}/accuracy"] for n in ("north_west", "süd")
    )
    assert weighted / 10 == pytest.approx(metrics["test/accuracy"])
    output = capsys.readouterr().out
    assert "1 test texts are also in the training split" in output
    assert "region/north_west" in output
    recorded = MlflowClient(store).get_run(result.run_id).data.metrics
    assert recorded["test/region/süd/accuracy"] == metrics["test/region/süd/accuracy"]
    names = {item.path for item in MlflowClient(store).list_artifacts(result.run_id)}
    assert {"data_audit.json", "data_audit.png"} <= names


def test_what_a_run_said_of_every_row_is_kept(config, reviews, tmp_path, store):
    write_regions(reviews, tmp_path)
    words = ["data.text=body", "data.label=stars", "data.slices=region", f"data.path={tmp_path}", "optim.lr=1e-2"]
    result = train(config(*words, "tracking=mlflow", f"tracking.uri={store}", "tracking.system_metrics=false"))
    names = [item.path for item in MlflowClient(store).list_artifacts(result.run_id, "predictions")]
    assert names == ["predictions/test.parquet", "predictions/validation.parquet"]
    for split, prefix in (("test", "test"), ("validation", "best")):
        found = read_predictions(result.folder / file_name(split))
        whole = measured(found.targets, found.probabilities).whole()
        assert whole.keys() == set(METRICS)
        wanted = {name: result.metrics[f"{prefix}/{name}"] for name in ("loss", "brier")}
        assert smooth(whole) == pytest.approx(wanted, abs=rounding())
        codes, values = found.slices["region"]
        assert {values[code] for code in codes} <= {"north/west", "süd"}
    assert len(found.ids) == 8
    rows = read_rows(result.folder / file_name("test"), range(10)).to_pylist()
    texts = [line.split("\t")[0] for line in (reviews / "test.tsv").read_text().splitlines()[1:]]
    assert [row["text"] for row in rows[:8]] == texts
    assert {row["label"] for row in rows} == set(result.labels)


def test_slices_whose_values_are_written_alike_stay_apart(config, tmp_path):
    rows = [
        f"text {i} {'good' if i % 2 else 'bad'},{i % 2},{('a=b', 'a/b', 'a_b', '', 'none')[i % 5]}" for i in range(300)
    ]
    (tmp_path / "x.csv").write_text("sentence,label,x\n" + "\n".join(rows) + "\n")
    none = ["data.splits.validation=null", "data.splits.test=null", "trainer.max_steps=1"]
    metrics = train(config(f"data.path={tmp_path / 'x.csv'}", "data.slices=x", *none)).metrics
    counted = {key: value for key, value in metrics.items() if key.startswith("test/x/") and key.endswith("/rows")}
    assert len(counted) == 5
    assert sum(counted.values()) == sum(
        metrics[f"test/x/{name}/rows"] for name in ("a_b", "a_b_", "a_b__", "none", "none_")
    )


def test_many_classes_do_not_fill_the_terminal(config, tmp_path, capsys):
    rows = [f"text {i} of class {i % 20},c{i % 20}" for i in range(400)]
    (tmp_path / "x.csv").write_text("sentence,label\n" + "\n".join(rows) + "\n")
    none = ["data.splits.validation=null", "data.splits.test=null", "trainer.max_steps=1"]
    labels = f"data.labels=[{','.join(f'c{i}' for i in range(20))}]"
    train(config(f"data.path={tmp_path / 'x.csv'}", labels, "data.validation_fraction=0.1", *none))
    output = capsys.readouterr().out
    assert "classes ┃ smallest ┃ largest" in output
    assert "The confusion matrix of 20 classes is in result.json" in output


@pytest.mark.slow
@pytest.mark.parametrize("words", [["data=tweets"], ["data=imdb", "data.max_length=64"]])
def test_the_other_embedded_data_sets_train(config, words, tmp_path):
    subsets = ["data.train_subset=16", "data.validation_subset=8", "data.test_fraction=0.002", "trainer.max_steps=1"]
    quick = ["model=tiny", "tracking=none", "trainer.progress_bar=false", f"output_dir={tmp_path}"]
    assert train(load_config(*words, *subsets, *quick)).metrics["train/steps"] == 1


def test_the_logits_of_the_test_split_are_in_its_order(config, monkeypatch):
    seen = []
    original = summary.count_answers
    monkeypatch.setattr(summary, "count_answers", lambda *given: seen.append(given) or original(*given))
    train(config("trainer.eval_batch_size=3"))
    ((inputs, test),) = seen
    assert test.targets.tolist() == inputs.examples.targets("test").tolist()
    assert test.logits.shape == (8, 2)


@pytest.mark.slow
def test_weights_and_gamma_change_the_training_and_are_recorded(config, tmp_path, store):
    def losses(*overrides):
        result = train(
            config("optim.lr=1e-2", f"output_dir={tmp_path / str(len(overrides))}{hash(overrides)}", *overrides)
        )
        return result.metrics["best/loss"], result

    plain, _ = losses()
    for overrides in (["data.class_weights=[1,9]"], ["task.focal_gamma=2"], ["data.sampling=balanced_labels"]):
        assert losses(*overrides)[0] != plain, overrides
    even, _ = losses("data.class_weights=balanced")  # the classes are balanced: every weight is 1
    assert even == plain
    _, result = losses("data.class_weights=[1,9]", "tracking=mlflow", f"tracking.uri={store}")
    params = MlflowClient(store).get_run(result.run_id).data.params
    assert params["data.class_weights"] == "[1, 9]"
    assert params["class_weight.positive"] == "9.0"


def test_class_weights_keep_the_loss_of_a_step_however_it_is_cut(config, tmp_path):
    def loss(size, accumulate):
        cut = [f"trainer.batch_size={size}", f"trainer.accumulate_grad_batches={accumulate}"]
        cut += ["optim.lr=1e-3", "optim.eps=1e-2"]
        result = train(config("data.class_weights=[1,9]", f"output_dir={tmp_path / str(size)}", *cut))
        return result.metrics["best/loss"]

    whole = loss(8, 1)
    assert loss(2, 4) == pytest.approx(whole, abs=rounding(whole) + drift(1e-3, 4, eps=1e-2))


def test_an_audit_is_written_down_and_trains_nothing(config, reviews, tmp_path, store, capsys):
    write_regions(reviews, tmp_path)
    words = ["data.text=body", "data.label=stars", f"data.path={tmp_path}", "data.train_subset=4"]
    found = audit(config(*words, "tracking=mlflow", f"tracking.uri={store}"))
    assert found.rows == {"train": 32, "validation": 8, "test": 10}
    output = capsys.readouterr().out
    assert "text also in train" in output
    client = MlflowClient(store)
    recorded = client.get_experiment_by_name("sentexp-audits")
    (audited,) = client.search_runs([recorded.experiment_id])
    assert client.get_experiment_by_name("sentexp") is None
    assert audited.info.status == "FINISHED"
    assert audited.data.metrics["test/text also in train"] == 1
    assert {item.path for item in client.list_artifacts(audited.info.run_id)} == {"data_audit.json", "data_audit.png"}
    (folder,) = (tmp_path / "outputs").glob(f"audit-{tmp_path.name}-*")
    assert json.loads((folder / "data_audit.json").read_text())["rows"]["test"] == 10


@pytest.mark.slow
@pytest.mark.draws
def test_pictures_are_drawn_at_the_end_of_a_single_run_and_of_others_when_asked(config, monkeypatch, tmp_path):
    def drawn(folder):
        return {name for name in PLOTS if (folder / name).is_file() and (folder / name).stat().st_size > 5000}

    swept = ("sweep.name=x", "baseline=false", "plots=null")
    result = train(config(*swept))
    assert not any((result.folder / name).exists() for name in PLOTS)
    monkeypatch.setattr("sentexp.run.train.fit_and_test", None)  # from here on nothing is trained
    train(config(*swept, "plots=true"))
    assert drawn(result.folder) == set(plots_of(result.kind))
    for name in plots_of(result.kind):
        (result.folder / name).unlink()
    train(config("plots=false"))
    assert drawn(result.folder) == set()
    train(config("plots=null"))
    assert drawn(result.folder) == set(plots_of(result.kind))


def test_a_run_that_trains_again_leaves_no_plots_of_before(config):
    swept = ("sweep.name=x", "baseline=false")
    result = train(config(*swept, "plots=true"))
    assert all((result.folder / name).is_file() for name in plots_of(result.kind))
    train(config(*swept, "sweep.rerun=true", "plots=null"))
    assert not any((result.folder / name).exists() for name in PLOTS)


def test_a_run_whose_metrics_are_gone_is_not_drawn(config, monkeypatch):
    result = train(config("plots=false"))
    (result.folder / "metrics.jsonl").unlink()
    train(config("plots=true"))
    assert not any((result.folder / name).exists() for name in PLOTS)


def test_a_fault_in_the_pictures_fails_no_run(config, monkeypatch, capsys):
    monkeypatch.setattr(plotting, "plot_run", lambda *_: 1 / 0)
    result = train(config("plots=true"))
    assert (result.folder / "result.json").is_file()
    assert "The pictures failed (ZeroDivisionError: division by zero)" in capsys.readouterr().out


def test_another_attempt_is_not_drawn_as_the_finished_run(config):
    result = train(config("plots=false"))
    (result.folder / "state.json").write_text('{"identity": "x"}')
    plot_finished(result, config("plots=true"))
    assert not any((result.folder / name).exists() for name in PLOTS)


def test_a_finished_run_of_other_labels_is_not_the_result(config, tmp_path):
    """Rows whose labels have other names, in the same order, have the same identity."""
    results = []
    for names in (("negative", "positive"), ("bad", "good")):
        rows = [f"film number {number} of many,{names[number % 2]}\n" for number in range(60)]
        (tmp_path / "x.csv").write_text("".join(["text,label\n", *rows]))
        own = ("data=csv", f"data.path={tmp_path / 'x.csv'}", "data.splits.validation=null", "data.splits.test=null")
        run = ("peft=head", "trainer.max_steps=1", *own)
        if results:
            with pytest.raises(
                UserError, match=r"is finished with the labels negative, positive, and these rows, .* bad"
            ):
                train(config(*run))
            run = (*run, "sweep.rerun=true")
        results.append(train(config(*run)).labels)
    assert results == [["negative", "positive"], ["bad", "good"]]


def test_runs_of_a_sweep_share_no_tokens_that_are_too_long(config):
    limits = []
    for virtual in (1, 40):
        words = ("sweep.name=a", "peft=prompt_tuning", f"peft.num_virtual_tokens={virtual}")
        spec = resolve_inputs(config(*words, "data.max_length=2008", "task.template='Review: {text}'"))
        limits.append((spec.positions, tokenize_splits(spec)["train"].limit))
    clear_cache()
    assert limits[0][0] - limits[1][0] == 39
    assert all(limit <= positions for positions, limit in limits)
    assert limits[0][1] > limits[1][0]
