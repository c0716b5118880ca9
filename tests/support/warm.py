"""Processes that have the libraries imported already: they are forked from one that has, which saves seconds for each.

Their command, environment, folder and files are those of a process of its own, and so are signals and exit codes. That
an interpreter that has imported nothing does the same is tested once for each kind: a run in
`test_the_default_run_learns`, a sweep in `test_a_sweep_killed_five_times_ends_as_an_undisturbed_one`, a launcher in
`test_launchers_give_the_table_of_the_launcher_in_this_process`, a server in
`test_a_request_that_is_begun_is_answered_before_it_stops`, signals in
`test_a_terminated_run_is_killed_in_mlflow_and_goes_on`, torchrun in the first case of each test of `test_processes.py`.
"""

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

MODULES = [
    "sentexp.run.train",
    "peft",
    "mlflow.store.tracking.sqlalchemy_store",
    "transformers.models.llama.modeling_llama",
]


class Process(ForkServerProcess):
    """`python *words` in a process that has imported the libraries; `subprocess.Popen`, as far as tests need it.

    Args:
        words: after `python`: a program or -m and a module, and their arguments.
        folder: where it works.
        environment: all of its variables.
        files: its output, its errors and perhaps its input.
    """

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], *files: Path) -> None:
        super().__init__(target=_run, args=(words, folder, environment, files))
        get_context("forkserver").set_forkserver_preload(MODULES)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # read on import
            forkserver.ensure_running()
        self.start()

    def poll(self) -> int | None:
        """Return the exit code; none while it runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Return the exit code at the end."""
        self.join()
        return self.exitcode


def run(
    words: list[str], folder: Path, environment: dict[str, str], said: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `python *words` to its end in a warm process that finds this on its input."""
    with tempfile.TemporaryDirectory() as kept:
        files = [Path(kept) / name for name in ("output", "errors", "input")]
        files[2].write_text(said)
        code = Process(words, folder, environment, *files).wait()
        return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files[:2]))


def _run(words: list[str], folder: Path, environment: dict[str, str], files: tuple[Path, ...]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in zip((1, 2, 0), files, strict=False):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    if len(files) > 2:
        sys.stdin = os.fdopen(0)
    try:
        match words:
            case ["-m", module, *rest]:
                sys.argv = [module, *rest]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case [program, *rest]:
                sys.argv = [program, *rest]
                runpy.run_path(program, run_name="__main__")
    finally:  # multiprocessing leaves without them
        threading._shutdown()
        atexit._run_exitfuncs()
