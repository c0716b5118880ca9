"""What can be done next, as commands that work as printed, and where MLflow's UI shows a run."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sentexp.config import TrackingBackend, TrackingConfig, from_conf
from sentexp.system.console import say
from sentexp.tracking.client import is_server
from sentexp.tracking.provenance import mask_uri, shell_line
from sentexp.tracking.store import open_store, store_uri

UI_PORT = 5000
EXAMPLE = "a warm and funny film"
OWN_MAKEFILE = re.compile(r"^ui:.*\n.*sentexp ui", re.MULTILINE)
OUTPUT_DIR = "outputs"


def sentexp_command(*words: str) -> str:
    """Return a command of sentexp that can be given in the current folder, whether its environment is active or not."""
    return shell_line([_python(), "-m", "sentexp", *words])


def predict_example(run: str, place: Sequence[str], pairs: bool) -> list[str]:
    """Return the command that predicts a sentence; none for pairs, which come from a file.

    Args:
        run: as an override.
        place: see `place_words`.
        pairs: whether the run reads pairs of texts.
    """
    return [] if pairs else [sentexp_command("predict", run, *place, "--text", EXAMPLE)]


def place_words(tracking: TrackingConfig, output_dir: str = OUTPUT_DIR) -> list[str]:
    """Return the overrides that another command needs to find what is there: none for the usual place.

    Args:
        tracking: where runs are recorded.
        output_dir: where they have their folders, in which they are found when nothing is recorded.
    """
    if tracking.backend is TrackingBackend.none:
        return ["tracking=none", *([] if output_dir == OUTPUT_DIR else [override("output_dir", output_dir)])]
    words = [] if tracking.uri is None else [override("tracking.uri", tracking.uri)]
    usual = from_conf(TrackingConfig).experiment
    return words + ([] if tracking.experiment == usual else [override("tracking.experiment", tracking.experiment)])


def override(key: str, value: str) -> str:
    """Return an override as hydra's grammar takes it, quoted where it must be."""
    if re.fullmatch(r"[a-zA-Z_/][\w/:@.-]*", value) and value.lower() not in ("null", "true", "false", "inf", "nan"):
        return f"{key}={value}"
    return f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """Return a text as hydra's grammar takes it, whatever it holds: backslashes are doubled before quotes only."""
    escaped = re.sub(r"(\\*)'", r"\1\1\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def say_next(commands: Sequence[str]) -> None:
    """Print commands that can be given next."""
    if commands:
        say("")
        say("Next, for instance:")
    for command in commands:
        say(f"  {command}")


def say_recorded(run_id: str | None, tracking: TrackingConfig) -> None:
    """Print which MLflow run a result is, and how the UI is opened at it; or that it is recorded nowhere."""
    if run_id is None or tracking.backend is TrackingBackend.none:
        say("recorded nowhere (tracking=none)")
        return
    say(f"MLflow run {run_id} in {mask_uri(store_uri(tracking))}")
    say_ui(tracking, run_id)


def say_ui(tracking: TrackingConfig, run_id: str | None = None) -> None:
    """Print the address of MLflow's UI at a run, or at the experiment, and the command that opens it."""
    uri = store_uri(tracking)
    server = mask_uri(uri).rstrip("/") if is_server(uri) else f"http://127.0.0.1:{UI_PORT}"
    address = f"{server}/#/experiments/{open_store(tracking).experiment}{'' if run_id is None else f'/runs/{run_id}'}"
    opened = "" if is_server(uri) else f" once `{_ui_command(tracking)}` runs"
    say(f"MLflow UI: {address}{opened}", address)


def _ui_command(tracking: TrackingConfig) -> str:
    """Return how MLflow's UI is opened: `make ui` where the Makefile here does it for this store."""
    makefile = Path("Makefile")
    own = makefile.is_file() and OWN_MAKEFILE.search(makefile.read_text(encoding="utf-8", errors="replace"))
    words = [word for word in place_words(tracking) if word.startswith("tracking.uri")]
    return "make ui" if own and not words else sentexp_command("ui", *words)


def _python() -> str:
    """Return how this Python is started in the current folder: by its name where that finds it, else by its path."""
    here, found = Path(sys.executable), shutil.which("python")
    if found is not None and Path(found).parent == here.parent:
        return "python"
    below = os.path.relpath(here)
    return str(here) if below.startswith("..") else below
