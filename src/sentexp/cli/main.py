"""The command line: `python -m sentexp [verb] [key=value ...]`. The first bare word is the verb; none means train.

Nothing heavy is imported at module level: a wrong key is refused before torch is.
"""

import math
import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sentexp.config import (
    IA3,
    TEMPLATE_GROUP,
    CompareConfig,
    Config,
    FinishedRun,
    Lora,
    SearchConfig,
    TrackingBackend,
    conf_dir,
    register_schemas,
)
from sentexp.distributed import processes
from sentexp.errors import UserError, complain, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sentexp.sweeps.sweep_dir import Outcome

VALUED_OPTIONS = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
)
USES = {
    "predict": "sentexp.inference.predict",
    "evaluate": "sentexp.inference.evaluate",
    "export": "sentexp.export.command",
    "register": "sentexp.serving.register",
    "serve": "sentexp.serving.serve",
}
"""Verbs that use a finished run, each a function of its name, and the module of that."""
OWN_KEYS = ("compare", *USES)
"""Verbs whose keys are those of `conf/<verb>.yaml`; the others take the configuration of a run."""
VERBS = ("train", "plan", "audit", "prepare", "runs", *OWN_KEYS)
NAMING_RUNS = ("run", "runs", "sweep", "base")
"""Keys of verbs whose values may be ids."""
GOES_ON = {
    "train": ": the same command goes on from its last checkpoint, or starts again without one",
    "predict": ": the same command goes on, from a file to a file",
}
"""What becomes of a verb that was interrupted."""
HELP = """\
sentexp fine-tunes language models to classify sentiment.

  python -m sentexp                                  offline: a real pretrained model, real reviews, minutes on a CPU
  python -m sentexp peft=qlora data=sst2             any combination of the groups
  python -m sentexp task=causal_lm                   an instruction, answered by a word; the base beside it
  python -m sentexp data=csv data.path=reviews.csv data.text=body data.label=stars        your own table
  python -m sentexp peft.r=8 optim.lr=1e-4 seed=1    any key of the configuration
  python -m sentexp --multirun peft.r=4,8,16         a sweep; given again, it goes on and skips what is finished
  python -m sentexp plan --multirun peft.r=4,8,16    what that sweep would do, its time and memory; trains nothing
  python -m sentexp --multirun hydra/sweeper=optuna 'optim.lr=tag(log,interval(1e-5,1e-3))'     a search
  python -m sentexp runs                             every run that is recorded: identity, state, result
  python -m sentexp compare                          the latest sweep: who is better, and how surely; with a report
  python -m sentexp predict run=best input=new.csv output=said.csv   labels and probabilities of other texts
  python -m sentexp predict run=best --text "..."    the same of one sentence
  python -m sentexp evaluate run=best data=imdb      a finished run on other data
  python -m sentexp export run=best format=merged    for other programs: peft, merged, onnx, gguf, safetensors; proved
  python -m sentexp register run=best name=reviews   a version in MLflow's registry; champion if it is surely better
  python -m sentexp serve run=best                   an HTTP server and a page, on this machine alone
  python -m sentexp audit data=fpb                   look for duplicates, leaks and faults in the data; train nothing
  python -m sentexp prepare model=gpt2 data=sst2     fetch, convert and tokenise only: the run then needs no network
  python -m sentexp --cfg job                        print the whole configuration and stop

Options:
  --multirun, -m        run every combination of comma-separated values
  --cfg job             print the composed configuration; --package peft prints one group
  --config-dir FOLDER   also look for group options in FOLDER/<group>/<option>.yaml
  --hydra-help          the help of hydra, which composes the configuration
  --version             print the version

Groups and their options:
"""


class Terminated(BaseException):
    """SIGTERM: the run ends as KILLED, and the same command goes on with it."""


def main() -> None:
    """Run the command line of this process and exit: 0 if all is well, 1 after a failure, 130 when interrupted."""
    words = sys.argv[1:]
    if words and words[0] in ("--help", "-h"):
        with suppress(BrokenPipeError):  # head has read enough
            print(help_text(), flush=True)
        return
    if words and words[0] == "--version":
        from sentexp import __version__

        print(f"sentexp {__version__}")
        return
    verb = "train"
    if words and re.fullmatch(r"[\w-]+", words[0]) and not words[0].startswith("-"):
        verb = words[0]
        if verb not in VERBS:
            complain(
                f"{verb} is no verb: it must be {', '.join(VERBS[:-1])} or {VERBS[-1]} (none means train), and an "
                "override reads key=value. See python -m sentexp --help."
            )
            sys.exit(1)
        del sys.argv[1]
    sentence = _take_sentence() if verb == "predict" else None
    if verb != "train" and {"--help", "-h"} & set(sys.argv[1:]):
        print(help_of(verb))
        return
    if verb == "plan":
        sys.argv.append("sweep.dry_run=true")
    elif verb not in ("train", *OWN_KEYS):
        sys.argv.insert(1, "hydra/sweeper=basic")
    sys.argv[1:] = [_as_text(word) for word in _options_first(sys.argv[1:])]
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(_compose_and_do(verb, sentence))


def _take_sentence() -> str | None:
    """Take `--text "..."` out of the arguments: a sentence may hold anything, and hydra reads it as a grammar."""
    sentences, others = [], []
    rest = iter(sys.argv[1:])
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--text":
            sentences.append(value if equals else next(rest, ""))
        else:
            others.append(word)
    if len(sentences) > 1:
        complain("--text is given more than once: it takes one sentence; write others to a file, for input=<file>.")
        sys.exit(1)
    sys.argv[1:] = others
    return sentences[0] if sentences else None


def _as_text(word: str) -> str:
    """Quote the ids of runs, which hydra may else take for numbers: 76e50123 is one, and so is 00501234."""
    key, _, value = word.partition("=")
    if key not in NAMING_RUNS or not re.fullmatch(r"\[?[\w:/@.~,-]+\]?", value):
        return word
    return f"{key}=" + re.sub(r"[^,[\]]+", lambda name: name[0] if name[0] == "null" else f"'{name[0]}'", value)


def _options_first(words: list[str]) -> list[str]:
    """Return the words with options before overrides, as hydra wants them; people type them in any order."""
    options: list[str] = []
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif name in VALUED_OPTIONS:
            options += [name, value if equals else next(rest, "")]
        else:
            options.append(word)
    return options + overrides


def help_text() -> str:
    """Return the help: usage, and every option of every group with the first line of its file."""
    lines = [HELP]
    for group in sorted(folder for folder in conf_dir().iterdir() if folder.is_dir()):
        lines.append(f"task.{group.name}=" if group.name == TEMPLATE_GROUP else f"{group.name}=")
        for file in sorted(group.glob("*.yaml")):
            comments = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")]
            about = next((line for line in comments if not line.startswith("@package")), "")
            lines.append(f"  {file.stem:<36}{about}")
    return "\n".join(lines)


def help_of(verb: str) -> str:
    """Return the help of a verb: its keys with what they mean, or all help where they are those of a run."""
    if verb not in OWN_KEYS:
        return help_text()
    about, _, keys = (conf_dir() / f"{verb}.yaml").read_text().partition("\n")
    own = keys.partition("\nhydra:")[0].split("\n\n", 1)[1]
    return f"python -m sentexp {verb} key=value ...\n\n{about.removeprefix('# ')}\n\n{own.strip()}"


def _compose_and_do(verb: str, sentence: str | None = None) -> int:
    """Compose the configuration with hydra and do each job of it; return the exit code."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises what it would print, and it is explained here
    register_schemas()

    failures: list[DictConfig] = []

    def job(config: "DictConfig") -> "float | Outcome":
        try:
            return _job(verb, config, full_error, sentence)
        except _Told:
            if HydraConfig.get().mode is RunMode.MULTIRUN:  # perhaps in another process
                raise
            failures.append(config)  # raised, hydra would tell of it once more
            return math.nan

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root_of(verb))(job)()
    except (KeyboardInterrupt, Terminated):
        if processes.speaks():
            complain(f"Interrupted{GOES_ON.get(verb, '')}.")
        return 130
    except _Told:
        return 1
    except Exception as error:
        if full_error:
            raise
        return _tell(error, verb)
    return 1 if failures else 0


def root_of(verb: str) -> str:
    """Return the name of the file in `conf/` that holds the keys of a verb."""
    return verb if verb in OWN_KEYS else "config"


def _tell(error: Exception, verb: str) -> int:
    """Say why nothing was started, or how a sweep ended; return the exit code."""
    from sentexp.config.explain import COMPOSITION_ERRORS, explain
    from sentexp.run.failures import explain_failure
    from sentexp.sweeps.sweeper import SweepFailed

    processes.wait_for_spokesman()  # first: finding the words takes time, in which the run may be ended
    sentence = str(error) if isinstance(error, SweepFailed) else explain_failure(error, "the current folder")
    if sentence is None and isinstance(error, COMPOSITION_ERRORS):
        sentence = explain(sys.argv[1:], error, root_of(verb))
    if sentence is None:
        raise error
    complain(sentence)
    return 1


class _Told(Exception):
    """A run has failed, and the console says why."""


def _job(verb: str, config: "DictConfig", full_error: bool, sentence: str | None) -> "float | Outcome":
    """Do one configuration; return its objective, or, for a run of a sweep of our own, what became of it."""
    try:
        return _do(verb, _typed(config), sentence)
    except Exception as error:
        from sentexp.run.failures import explain_failure

        if full_error:
            raise
        processes.wait_for_spokesman()
        sentence = explain_failure(error, config.get("output_dir") or config.output)
        if sentence is None:
            traceback.print_exc()
        else:
            complain(sentence)
        raise _Told from error
    except SystemExit:  # Lightning turns an interrupt into an exit
        raise KeyboardInterrupt from None


AnyConfig = Config | CompareConfig | FinishedRun


def _typed(config: "DictConfig") -> AnyConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        typed = OmegaConf.to_object(config)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The configuration does not fit together ({reason}): python -m sentexp --cfg job lists every key."
        ) from error
    assert isinstance(typed, AnyConfig)
    return typed


def _do(verb: str, config: AnyConfig, sentence: str | None) -> "float | Outcome":
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    if isinstance(config, CompareConfig):
        from sentexp.compare.command import compare

        processes.require_one("sentexp compare")
        compare(config)
        return math.nan
    if isinstance(config, FinishedRun):
        processes.require_one(f"sentexp {verb}")
        use = getattr(import_module(USES[verb]), verb)
        use(config) if sentence is None else use(config, sentence)
        return math.nan
    hydra = HydraConfig.get()
    sweeper = OmegaConf.to_object(hydra.sweeper)
    search = sweeper if isinstance(sweeper, SearchConfig) else None
    require(
        search is None or hydra.mode is RunMode.MULTIRUN,
        "hydra/sweeper=optuna searches with --multirun: add it, or leave the sweeper out.",
    )
    if Path(hydra.runtime.cwd).is_dir() and not hydra.job.chdir:  # a worker of a cluster was started elsewhere,
        os.chdir(hydra.runtime.cwd)  # perhaps on a machine that does not have this folder
    if config.sweep.dry_run and verb in ("train", "plan"):
        from sentexp.plan.command import plan

        plan([config])
        return math.nan
    from sentexp.run import train
    from sentexp.system.hardware import freeze_imports

    if verb == "train":
        adapters = ["peft"] if isinstance(config.peft, Lora | IA3) else []
        tracking = ["mlflow"] if config.tracking.backend is TrackingBackend.mlflow else []
        freeze_imports(*adapters, *tracking)
    if config.sweep.name is not None:
        from sentexp.search.policies import judge_of
        from sentexp.sweeps.job import run_job
        from sentexp.sweeps.sweep_dir import SweepFolder

        folder = Path(hydra.runtime.output_dir)
        return run_job(config, SweepFolder(folder.parent), int(folder.name), judge_of(config, search))
    if verb == "train":
        return train.run(config).objective
    processes.require_one(f"sentexp {verb}")
    if verb == "runs":
        from sentexp.cli.list_runs import list_runs

        list_runs(config)
    else:
        (train.audit if verb == "audit" else train.prepare)(config)
    return math.nan


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise Terminated
