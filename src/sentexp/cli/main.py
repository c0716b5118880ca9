"""The command line: `python -m sentexp [command] [key=value ...]`. Without a command it trains.

Nothing heavy is imported at module level: a wrong key is refused before torch is.
"""

import math
import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, NoReturn

from sentexp.cli.commands import COMMANDS, Command
from sentexp.cli.completion import complete, is_query
from sentexp.cli.help import help_of, help_text
from sentexp.config import ChosenRun, CompareConfig, Config, UiConfig, conf_dir, register_schemas
from sentexp.distributed import processes
from sentexp.errors import UserError, complain
from sentexp.system.signals import raise_on_signal
from sentexp.tracking.next_steps import quoted

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
QUICK = "--quick"
VERBOSE = ("-v", "--verbose")
NAMING_RUNS = ("run", "runs", "sweep", "base", "filter")
"""Keys of commands whose values may be ids or names of runs, or MLflow's filter of them."""
TEMPLATES = ("data.text", "data.text_pair", "text", "text_pair")
"""Keys whose values may be templates of columns."""


class Terminated(BaseException):
    """SIGTERM: the run ends as KILLED, and the same command resumes it."""


class CommandFailed(Exception):
    """A command has failed, and the console says why."""


def main() -> None:
    """Run the command line of this process and exit: 0 if all is well, 1 after a failure, 130 when interrupted."""
    if sys.argv[1:2] in (["--help"], ["-h"]):
        with suppress(BrokenPipeError):  # head has read enough
            print(help_text(), flush=True)
        return
    if sys.argv[1:2] == ["--version"]:
        from sentexp import __version__

        print(f"sentexp {__version__}")
        return
    if is_query():
        asked = complete()
        if asked is not None:
            sys.exit(_compose_and_run(asked, []))
        return
    command = _take_command()
    text = _take_text() if command.name == "predict" else None
    if command.name != "train" and {"--help", "-h"} & set(sys.argv[1:]):
        print(help_of(command))
        return
    sys.argv += [command.override] if command.override else []
    verbose = _take_verbose()
    _take_quick(command)
    several = bool({"--multirun", "-m"} & set(sys.argv[1:]))
    sys.argv[1:] = [_as_text(word, several) for word in _options_first(sys.argv[1:])]
    _check_options()
    raise_on_signal(signal.SIGTERM, Terminated)
    try:
        exit_code = _compose_and_run(command, [] if text is None else [text])
        if verbose:
            from sentexp.system.stopwatch import print_times

            print_times()
    except (KeyboardInterrupt, Terminated):
        if processes.reports_errors():
            complain(f"Interrupted{command.interrupted}.")
        exit_code = 130
    sys.exit(exit_code)


def _take_command() -> Command:
    """Take the command out of the arguments; without one, it is train. Only `--verbose` may come before it."""
    before = list(takewhile(VERBOSE.__contains__, sys.argv[1:]))
    sys.argv[1:] = sys.argv[1 + len(before) :] + before
    if len(sys.argv) < 2 or not re.fullmatch(r"\w[\w-]*", sys.argv[1]):  # noqa: PLR2004
        return COMMANDS["train"]
    name = sys.argv.pop(1)
    if name not in COMMANDS:
        complain(
            f"Unknown command '{name}'. Commands: {', '.join(COMMANDS)} (the default is train). An override is written "
            "key=value. See python -m sentexp --help."
        )
        sys.exit(1)
    return COMMANDS[name]


def _take_quick(command: Command) -> None:
    """Put the key that `--quick` stands for in its place."""
    if QUICK not in sys.argv[1:]:
        return
    if command.name != "train":
        complain(f"{QUICK} tries a run before it is trained, and {command.name} trains none: leave it out.")
        sys.exit(1)
    sys.argv[1:] = [word for word in sys.argv[1:] if word != QUICK] + ["sweep.quick=true"]


def _take_verbose() -> bool:
    """Take `--verbose` out of the arguments, and tell whether it was there."""
    words = [word for word in sys.argv[1:] if word not in VERBOSE]
    verbose, sys.argv[1:] = len(words) < len(sys.argv) - 1, words
    return verbose


def _take_text() -> str | None:
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


def _as_text(word: str, several: bool = False) -> str:
    r"""Quote what hydra reads as a grammar: of runs ids, names and filters (76e50123 is a number), and templates.

    Keys of `peft.config` may be new.

    Args:
        word: of the command line.
        several: whether values between commas are those of a sweep.
    """
    key, _, value = word.partition("=")
    if key.startswith("peft.config."):
        return f"++{word}"  # keys of PEFT's own, which no file holds
    if key in TEMPLATES and "{" in value and value[0] not in "'\"[":
        return f"{key}={quoted(value)}"
    if key not in NAMING_RUNS or not value or value[0] in "'\"" or re.fullmatch(r"\w+\(.*\)", value):
        return word
    listed = key == "runs" and value[0] + value[-1] == "[]"
    names = value[1:-1] if listed else value
    split = _at_commas(names) if listed or several or key == "runs" else [names]
    text = ",".join(name if name in ("null", "") or name[0] in "'\"" else quoted(name) for name in split)
    return f"{key}=[{text}]" if listed else f"{key}={text}"


def _at_commas(text: str) -> list[str]:
    """Split a text at the commas that are in no brackets and no quotes."""
    return [name.strip() for name in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\[[^]]*\]|\{[^}]*\}|[^,])+", text)] or [text]


def _check_options() -> None:
    """Refuse options that hydra does not have, or that lack their value, in a sentence; and the one that unpickles."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        complain(f"{message}: python -m sentexp --help lists the options, and an override is written key=value.")
        sys.exit(1)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args()
    if given.experimental_rerun is not None:
        refuse("--experimental-rerun reads a pickle, which can run any code")


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


def _compose_and_run(command: Command, arguments: list[str]) -> int:
    """Compose the configuration with hydra and run the command for each job of it; return the exit code."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises what it would print, and it is explained here
    register_schemas()
    failures: list[DictConfig] = []
    here = os.getpid()  # a launcher may call the job in other processes

    def job(config: "DictConfig") -> "float | Outcome":
        try:
            return _run_job(command, config, arguments, full_error)
        except CommandFailed:
            if HydraConfig.get().mode is RunMode.MULTIRUN and os.getpid() != here:
                raise
            failures.append(config)  # raised, hydra would tell of it once more
            return math.nan

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.root)(job)()
    except CommandFailed:
        return 1
    except Exception as error:
        if full_error:
            raise
        return _report(error, command)
    return 1 if failures else 0


def _report(error: Exception, command: Command) -> int:
    """Say why nothing was started, or how a sweep ended; return the exit code."""
    from sentexp.config.explain import COMPOSITION_ERRORS, explain
    from sentexp.run.failures import explain_failure
    from sentexp.sweeps.sweeper import SweepFailed

    processes.wait_for_error_reporter()  # first: finding the words takes time, in which the run may be ended
    sentence = str(error) if isinstance(error, SweepFailed) else explain_failure(error, "the current folder")
    if sentence is None and isinstance(error, COMPOSITION_ERRORS):
        sentence = explain(sys.argv[1:], error, command.root)
    if sentence is None:
        raise error
    complain(sentence)
    return 1


def _run_job(command: Command, config: "DictConfig", arguments: list[str], full_error: bool) -> "float | Outcome":
    """Run the command for one configuration; say why where it fails."""
    try:
        return command.run(_typed(config), *arguments)
    except Exception as error:
        from sentexp.run.failures import explain_failure

        if full_error:
            raise
        processes.wait_for_error_reporter()
        sentence = explain_failure(error, config.get("output_dir") or config.get("output") or ".")
        if sentence is None:
            traceback.print_exc()
        else:
            complain(sentence)
        raise CommandFailed from error
    except SystemExit:  # Lightning turns an interrupt into an exit
        raise KeyboardInterrupt from None


def _typed(config: "DictConfig") -> Config | CompareConfig | ChosenRun | UiConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from sentexp.config.explain import explain_misfit

    try:
        typed = OmegaConf.to_object(config)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(explain_misfit(error)) from error
    assert isinstance(typed, Config | CompareConfig | ChosenRun | UiConfig)
    return typed
