"""What is wrong with paths and small tables is said before PyTorch is imported."""

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.run import early_look
from sentexp.run.early_look import gpu_is_possible, look_early
from sentexp.run.train import train


@pytest.fixture
def films(tmp_path):
    """Return the words that name a small table."""
    file = tmp_path / "films.csv"
    file.write_text("text,label\n" + "".join(f"film {row},{'up' if row % 2 else 'down'}\n" for row in range(20)))
    return ["model=tiny", "data=csv", f"data.path={file}"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("data.label=stars", "data.label=stars is not a column of"),
        ("data.path=none.csv", "data.path=none.csv does not exist"),
        ("data.path=none-*.csv", r"data.path=none-\*.csv matches no file"),
        ("model.path=/nowhere", "model.path=/nowhere does not exist"),
        ("data.labels=[up,sideways]", "sideways"),
        ("task.loss=regression", "not a number"),
    ],
)
def test_what_no_run_can_begin_with_is_refused(word, sentence, films):
    look_early([load_config(*films)])
    with pytest.raises(UserError, match=sentence):
        look_early([load_config(*films, word)])


def test_of_several_runs_those_that_can_begin_do(films):
    wrong, right = load_config(*films, "data.label=stars"), load_config(*films)
    look_early([wrong, right])
    with pytest.raises(UserError, match=r"data\.label=stars"):
        look_early([wrong, load_config(*films, "data.path=none.csv")])


def test_rows_of_large_data_are_left_to_the_run(films, monkeypatch):
    pattern = films[2].replace("films", "fil*")
    with pytest.raises(UserError, match="sideways"):
        look_early([load_config(*films, "data.labels=[up,sideways]")])
    monkeypatch.setattr(early_look, "SMALL", 10)
    for place in (films[2], pattern):
        look_early([load_config(*films, place, "data.labels=[up,sideways]")])
        with pytest.raises(UserError, match=r"data\.label=stars"):
            look_early([load_config(*films, place, "data.label=stars")])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trainer.precision=fp16"], "trainer.precision=fp16 needs a CUDA GPU"),
        (["optim=paged_adamw_8bit"], "optim=paged_adamw_8bit needs a CUDA GPU"),
        (["trainer.cuda_graphs=true"], "and this run is on the CPU, which has none"),
    ],
)
def test_what_a_named_device_cannot_do_is_refused_by_the_configuration(words, sentence):
    load_config(*words)
    with pytest.raises(UserError, match=sentence):
        load_config(*words, "trainer.accelerator=cpu")


def test_what_this_machine_cannot_do_leaves_no_folder(films, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for word in ("trainer.cuda_graphs=true", "trainer.precision=fp16"):
        with pytest.raises(UserError):
            train(load_config(*films, word, "tracking=none", f"output_dir={tmp_path / 'outputs'}"))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("words", [[], ["plan"], ["audit"], ["--multirun", "peft.r=2,4"], ["--quick"]])
def test_commands_refuse_without_torch(words, films, in_a_process, tmp_path):
    code, loaded, errors = in_a_process(*words, *films, "data.label=stars")
    assert code == 1
    assert "torch" not in loaded
    assert errors.startswith("sentexp: data.label=stars is not a column of")
    assert [path.name for path in tmp_path.iterdir()] == ["films.csv"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trainer.precision=fp16"], "trainer.precision=fp16 needs a CUDA GPU"),
        (["optim=paged_adamw_8bit"], "optim=paged_adamw_8bit needs a CUDA GPU"),
        (["trainer.cuda_graphs=true"], "and this run is on the CPU, which has none"),
        (["trainer.accelerator=gpu"], "trainer.accelerator=gpu, but no CUDA GPU is visible here"),
    ],
)
def test_what_needs_a_gpu_is_refused_where_there_surely_is_none(words, sentence, films, monkeypatch):
    monkeypatch.setattr(early_look, "gpu_is_possible", lambda: True)
    look_early([load_config(*films, *words)])
    monkeypatch.setattr(early_look, "gpu_is_possible", lambda: False)
    look_early([load_config(*films)])
    with pytest.raises(UserError, match=sentence):
        look_early([load_config(*films, *words)])


def test_a_gpu_is_possible_where_linux_has_a_device_for_one(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(early_look, "DEV", tmp_path)
    (tmp_path / "null").touch()
    (tmp_path / "nvidia-caps").touch()
    assert not gpu_is_possible()
    (tmp_path / "nvidia0").touch()
    assert gpu_is_possible()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_is_possible()


@pytest.mark.parametrize("words", [["optim=paged_adamw_8bit"], ["peft=p_tuning", "task.neftune_alpha=5"]])
def test_what_cannot_be_had_is_refused_without_torch(words, films, in_a_process, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, loaded, errors = in_a_process(*films, *words)
    assert code == 1
    assert "torch" not in loaded
    assert errors.startswith(f"sentexp: {words[-1]}")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_of_large_data_the_header_is_looked_at(ending, tmp_path, monkeypatch):
    file = tmp_path / f"films.{ending}"
    table = pa.table({"text": ["a film", "a 'film"], "label": ["up", ""]})
    (csv.write_csv if ending == "csv" else parquet.write_table)(table, file)
    films = ["model=tiny", "data=csv", f"data.path={file}"]
    with pytest.raises(UserError, match="label"):
        look_early([load_config(*films)])
    monkeypatch.setattr(early_look, "SMALL", 10)
    look_early([load_config(*films)])
    with pytest.raises(UserError, match=r"data\.text=review is not a column of .*: its columns are text, label"):
        look_early([load_config(*films, "data.text=review")])


def test_rows_and_encoding_of_large_data_are_left_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(early_look, "SMALL", 10)
    file = tmp_path / "films.csv"
    films = ["model=tiny", "data=csv", f"data.path={file}"]
    file.write_text('text,label\n"never closed,up\n')
    look_early([load_config(*films)])
    file.write_bytes("text,étiquette\nfilm,up\n".encode("latin-1"))
    look_early([load_config(*films)])
