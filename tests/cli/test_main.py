"""The command line in a process of its own: speed of the light commands, sentences, exit codes, sweeps that go on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import warm
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow import MlflowClient

from sentexp.cli.commands import COMMANDS
from sentexp.cli.help import help_text
from sentexp.cli.main import _as_text, main
from sentexp.config import conf_dir, register_schemas
from sentexp.system import garbage


@pytest.fixture
def started(command_environment, tmp_path):
    """Return a function that starts the command in an empty folder and returns (exit code, output, errors)."""

    def command(*words):
        done = subprocess.run(
            [sys.executable, "-m", "sentexp", *words],
            cwd=tmp_path, env=command_environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.fixture
def forked(command_environment, tmp_path):
    """Return a function like `started`, whose process is warm: other slow tests run and sweep in fresh ones."""

    def command(*words):
        done = warm.run(["-m", "sentexp", *words], tmp_path, command_environment)
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.fixture(params=["here", pytest.param("process", marks=pytest.mark.slow)])
def sentexp(request, reviews, forked, command_line, tmp_path):
    """Return the command line, in this process or in one of its own, in an empty folder: words of a quick run added."""
    do = command_line if request.param == "here" else forked
    added = [
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation",
        "data.splits.test=test", "trainer.progress_bar=false", "trainer.batch_size=8", "tracking.system_metrics=false",
    ]  # fmt: skip
    if request.param == "here":  # MLflow keeps a store for the whole process by its address: it must name the folder
        added.append(f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    return lambda *words, quick=True: do(*words, *(added if quick else []))


def test_help_names_every_option_of_every_group():
    text = help_text()
    for file in conf_dir().glob("*/*.yaml"):
        assert f"  {file.stem} " in text, file.stem
        assert f"{file.parent.name}=" in text


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.has_own_keys])
def test_a_command_tells_its_keys(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sentexp", name, "--help"])
    main()
    register_schemas()
    told = capsys.readouterr().out
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        keys = set(compose(name)) - {"tracking", "data"}
    assert {line.partition(":")[0] for line in told.splitlines() if re.match(r"\w+: .*#", line)} == keys


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["--cfg", "job"], ["serve", "-h"], ["runs", "tracking=none"]]
)
def test_light_commands_do_not_import_torch(words, monkeypatch, tmp_path):
    code = (
        f"import sys; sys.argv[1:] = {words!r}; sys.modules['torch'] = None; from sentexp.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("place", "words", "sentence"),
    [
        ("started", ["peft=loraa"], "sentexp: peft=loraa is not an option of peft: it must be one of adalora"),
        ("started", ["trian"], "sentexp: Unknown command 'trian'. Commands: train, plan"),
        ("command_line", ["peft.r=0"], "sentexp: peft.r=0 must be at least 1."),
        ("command_line", ["-m", "peft.r=4,x"], "sentexp: peft.r=x: "),
        ("command_line", ["experiment=nope"], "sentexp: experiment=nope is not an option of experiment"),
        ("command_line", ["+foo=1", "model=tiny"], "sentexp: The configuration does not fit together ("),
        ("command_line", ["peft=null"], "sentexp: "),
        ("command_line", ["~data"], "sentexp: "),
        ("command_line", ["-m", "optim.schedule=glob(*)"], "sentexp: optim.schedule=glob(*) has no values"),
        (
            "command_line",
            ["-m", "peft=glob(x*)", "peft.r=4,8"],
            "sentexp: peft=glob(x*) has no values, so there is",
        ),
        (
            "command_line",
            ["-m", "peft.r=range(4,4)"],
            "sentexp: peft.r=range(4,4) has no values, so there is no run:",
        ),
        ("command_line", ["plan", "-m", "seed=range(1,1)"], "sentexp: seed=range(1,1) has no values"),
        ("command_line", ["predict", "-m", "text=range(1,1)"], "sentexp: text=range(1,1) has no values"),
        ("command_line", ["runs", "-m", "seed=interval(1,2)"], "sentexp: seed=interval(1,2) has no end of values"),
        (
            "command_line",
            ["-m", "hydra/sweeper=optuna", "seed=range(1,1)"],
            "sentexp: seed=range(1,1) has no values",
        ),
        ("command_line", ["-m", "peft.rr=4", "seed=range(1,1)"], "sentexp: peft.rr: peft has no key 'rr'"),
        ("command_line", ["-x"], "sentexp: unrecognized arguments: -x: python -m sentexp --help lists the options"),
        ("command_line", ["--cfg", "jobs"], "sentexp: argument --cfg/-c: invalid choice: 'jobs'"),
        ("command_line", ["--experimental-rerun=a"], "sentexp: --experimental-rerun reads a pickle, which can run any"),
        ("command_line", ["export", "-m", "~tracking"], "sentexp: tracking has no value: give it one"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_failure(place, words, sentence, request):
    code, _, errors = request.getfixturevalue(place)(*words)
    assert code == 1
    assert errors.startswith(sentence)
    assert errors.count("\n") == 1


FILTER = "params.peft = 'lora' and metrics.`test/accuracy` > 0.8"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run=76e50123", "76e50123"),
        ("run=r=16 lr=2e-4", "r=16 lr=2e-4"),
        ("run=target_modules=[q,v] it's", "target_modules=[q,v] it's"),
        ("run='r=16'", "r=16"),
        ("run=null", None),
        ("run=ends with \\", "ends with \\"),
        ("base=r=8", "r=8"),
        ("filter=params.peft = 'lora' and metrics.`test/accuracy` > 0.8", FILTER),
        (f'filter="{FILTER}"', FILTER),
        ("sweep=sweep r=8,16", "sweep r=8,16"),
        ("runs=[00501234,r=16]", ["00501234", "r=16"]),
    ],
)
def test_the_name_of_a_run_may_hold_what_hydra_reads_as_grammar(word, value):
    override = OverridesParser.create().parse_override(_as_text(word))
    assert not override.is_sweep_override()
    assert override.value() == value


def test_keys_of_peft_need_no_plus():
    assert _as_text("peft.config.r=8") == "++peft.config.r=8"
    assert _as_text("peft.type=PSOFT") == "peft.type=PSOFT"


def test_a_sweep_over_runs_has_one_for_each_name():
    override = OverridesParser.create().parse_override(_as_text("run=00501234,r=16", several=True))
    assert [name.text for name in override.sweep_iterator()] == ["00501234", "r=16"]


def test_a_run_prints_result_audit_and_whereabouts_and_is_recorded(sentexp, tmp_path, store):
    code, output, errors = sentexp("train", "peft.r=3")
    assert code == 0, errors
    for part in (
        "data: reviews",
        "peft=lora",
        "auroc_macro",
        "true \\ predicted",
        "MLflow run",
        "MLflow UI: http://127.0.0.1:5000/#/experiments/1/runs/",
        "modules adapted",
        " --multirun peft.r=1,3,6 model=tiny ",
    ):
        assert part in output, part
    (run,) = MlflowClient(store).search_runs(["1"])
    assert run.info.run_id in output
    assert run.info.status == "FINISHED"
    assert run.data.tags["command"].startswith("python -m sentexp peft.r=3 model=tiny")
    assert (
        json.loads((tmp_path / "outputs" / run.data.tags["identity"] / "result.json").read_text())["run_id"]
        == run.info.run_id
    )
    assert "Traceback" not in errors


@pytest.mark.slow
def test_what_a_run_proposes_can_be_given_as_it_stands(sentexp):
    _, output, _ = sentexp("peft.r=3")
    lines = output.partition("Next, for instance:\n")[2].splitlines()
    assert len(lines) == 3
    predict, _, sweep = (shlex.split(line)[3:] for line in lines)
    code, output, errors = sentexp(*predict, quick=False)
    assert code == 0, errors
    assert "probability" in output
    code, output, errors = sentexp(*sweep, quick=False)
    assert code == 0, errors
    assert "Sweep of 3 runs" in output
    assert "Next, for instance:" in output
    for line in output.partition("Next, for instance:\n")[2].splitlines():
        code, _, errors = sentexp(*shlex.split(line)[3:], quick=False)
        assert code == 0, errors


def test_a_sweep_goes_on_after_a_failure_and_tells_of_it(sentexp, tmp_path, store):
    code, output, errors = sentexp("peft.r=4,8", "--multirun", "peft.target_modules=[nothing],[q_proj]")
    assert code == 1
    everything = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    baselines = sorted(run.data.tags["baseline"] for run in everything if "baseline" in run.data.tags)
    assert baselines == ["linear_probe", "majority", "tfidf"]  # once for the sweep
    runs = [run for run in everything if not {"baseline", "sweep.identity"} & set(run.data.tags)]
    finished = [run.data.params["peft.r"] for run in runs if run.info.status == "FINISHED"]
    assert sorted(finished) == ["4", "8"]
    assert sum(run.info.status == "FAILED" for run in runs) == 2
    assert errors.count("peft.target_modules: 'nothing' matches no module") == 2
    assert "4/4 | " in output
    assert "sentexp: 2 of 4 runs failed: " in errors


def test_prepare_trains_nothing(sentexp, tmp_path):
    code, output, errors = sentexp("prepare")
    assert code == 0, errors
    assert "a run of this configuration needs no network" in output
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "outputs").exists()


def test_a_users_own_group_options_are_found(sentexp, tmp_path, reviews):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "films.yaml").write_text(
        f"defaults: [csv, _self_]\nname: films\npath: {reviews}\nlabels: [negative, positive]\ntext: sentence\n"
        "splits: {train: train, validation: validation, test: test}\n"
    )
    words = ["--config-dir", "mine", "model=tiny", "data=films", "tracking=none", "trainer.progress_bar=false"]
    code, output, errors = sentexp(*words, quick=False)
    assert code == 0, errors
    assert "data: films" in output  # one's own option is taken at its word
    (tmp_path / "mine" / "data" / "bare.yaml").write_text("name: bare\npath: x.csv\ntext: sentence\n")
    code, _, errors = sentexp("--config-dir", "mine", "data=bare", quick=False)
    assert "In 'data/bare': Key 'text' not in 'DataConfig'; a file of your own begins with `defaults:" in errors
    code, _, errors = sentexp("--config-dir", "mine", "data=filmz", quick=False)
    assert "films" in errors
    assert code == 1


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_run_is_killed_in_mlflow_and_goes_on(number, command_environment, tmp_path, reviews):
    words = [
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation", "data.splits.test=test",
        "trainer.progress_bar=false", "trainer.max_epochs=400", "trainer.save_steps=5", "tracking.system_metrics=false",
        "trainer.batch_size=4",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "sentexp", *words], cwd=tmp_path, env=command_environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.glob("outputs/*/last.ckpt")):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command resumes from its last checkpoint" in errors
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "KILLED"
    assert "traceback.txt" in {item.path for item in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(command_environment, tmp_path, reviews):
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from sentexp.cli.main import main
import sentexp.run.train
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
main()
"""
    words = [
        "model=tiny",
        "data=sst2",
        f"data.path={reviews}",
        "data.splits.validation=validation",
        "data.splits.test=test",
    ]
    words += ["trainer.progress_bar=false", "tracking=none", "trainer.batch_size=8"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env=command_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "sentexp: No space is left to write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_start_is_one_sentence(number, monkeypatch, capsys):
    monkeypatch.setattr("sentexp.cli.main.register_schemas", lambda: signal.raise_signal(number))
    monkeypatch.setattr(sys, "argv", ["sentexp"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err.count("Interrupted: the same command resumes") == 1


def test_the_exit_code_of_a_clean_run_is_zero(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sentexp", "--version"])
    main()
    assert capsys.readouterr().out.startswith("sentexp 0.")
    assert os.environ.get("HYDRA_FULL_ERROR") is None


def test_a_training_skips_its_imports_when_it_collects_garbage(words, command_line, monkeypatch):
    frozen = []
    monkeypatch.setattr(garbage, "freeze_imports", lambda *modules: frozen.append(modules))
    assert command_line(*words)[0] == 0
    assert command_line(*words, "peft=head")[0] == 0
    assert command_line("runs", *words)[0] == 0
    assert frozen == [("sentexp.run.train",)] * 2


@pytest.mark.parametrize("option", ["-v", "--verbose"])
def test_a_table_says_where_the_time_went(sentexp, option):
    code, output, errors = sentexp(option, "plots=true", "trainer.max_steps=2", "baseline=true")
    assert code == 0, errors
    seconds = {name.strip(): float(value) for name, value in re.findall(r"│ ([a-z ]+)│ +([\d.]+) │", output)}
    parts = ["data", "tokens", "audit", "loading the model", "baselines", "training", "validation", "test", "plots"]
    assert set(parts) | {"start and imports", "records", "saving"} <= set(seconds)
    assert seconds.pop("sum") == pytest.approx(sum(seconds.values()), abs=0.05 * len(seconds) + 0.05)


def test_no_table_of_times_is_printed_unless_asked_for(sentexp):
    code, output, _ = sentexp("plan")
    assert code == 0
    assert "start and imports" not in output


def test_verbose_may_come_before_the_command(sentexp):
    code, output, errors = sentexp("-v", "models", quick=False)
    assert code == 0, errors
    assert "smollm2_135m" in output
    assert "start and imports" in output
