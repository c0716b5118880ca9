"""Provenance: the command, the commit and the libraries behind a run."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from sentexp import __version__

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "hydra-core",
    "omegaconf",
    "lightning",
    "torchmetrics",
    "mlflow",
)

GIVEN_BY_A_SWEEP = ("sweep.name=", "sweep.parent=", "sweep.study=", "sweep.trial=")

PASSWORD = re.compile(r"(://[^\s/?#:@]*):[^\s/?#]*@")
"""User and password in a URI."""


def command() -> str:
    """Return the console command of this process, or of the one run of a sweep that it is at, to be typed again."""
    words = given_words(in_sweep=True)
    return shell_line(["python", "-m", "sentexp", *(sys.argv[1:] if words is None else words)])


def shell_line(words: Sequence[str]) -> str:
    """Return words as a shell takes them, without passwords."""
    return " ".join(_quoted(mask_uri(word)) for word in words)


def _quoted(word: str) -> str:
    """Return a word in double quotes where it has single ones and nothing that a shell expands."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def given_words(*, in_sweep: bool) -> list[str] | None:
    """Return the words of the run that hydra is at, of a sweep or a single one; None where it is at no such run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or (HydraConfig.get().mode is RunMode.MULTIRUN) is not in_sweep:
        return None
    hydra = HydraConfig.get()
    options = [
        f"--config-dir={source.path}" for source in hydra.runtime.config_sources if source.provider == "command-line"
    ]
    return options + [word for word in hydra.overrides.task if not word.startswith(GIVEN_BY_A_SWEEP)]


def planned_words() -> list[str]:
    """Return the words of this process's command line without those that make a plan of it."""
    own = ("sweep.dry_run=true", "-m", "--multirun")
    several = ["--multirun"] if {"-m", "--multirun"} & set(sys.argv[1:]) else []
    return [*several, *(word for word in sys.argv[1:] if word not in own)]


def git_state() -> dict[str, str]:
    """Return the commit of the current folder and whether it was changed; nothing outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain"))).lower()}


def library_versions() -> dict[str, str]:
    """Return the versions of sentexp, and of the installed libraries that a result depends on."""
    return {"sentexp": __version__, **{name: _version(name) for name in LIBRARIES}}


def mask_uri(text: str) -> str:
    """Return a text with the password of every URI in it replaced by stars; other texts unchanged."""
    return PASSWORD.sub(r"\1:***@", text)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603, S607
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
