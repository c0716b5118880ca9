"""Completion in a shell: hydra's, which knows the keys and options, with the commands and the runs that are there.

eval "$(sentexp -sc install=bash)"     # or zsh; fish: sentexp -sc install=fish | source
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sentexp.cli.commands import COMMANDS, Command

OPTIONS = ("-sc", "--shell-completion")
NAMES = ("latest", "best")
IDENTITY = re.compile("[0-9a-f]{16}")


def is_query() -> bool:
    """Tell whether a shell asks what the words that are typed may become."""
    return bool(set(OPTIONS) & set(sys.argv[1:])) and any(word.startswith("query=") for word in sys.argv[1:])


def complete() -> Command | None:
    """Print what sentexp knows and hydra does not; return the command whose keys hydra is to complete, if any.

    The shell gives the line so far in COMP_LINE; hydra reads there what follows the name of the program.
    """
    program, *words = re.split(r"\s+", os.environ.get("COMP_LINE", "sentexp ").lstrip())
    last = words[-1] if words else ""
    if len(words) < 2:  # noqa: PLR2004 (the first word is not complete yet)
        print(*(name for name in COMMANDS if name.startswith(last)))
        return COMMANDS["train"]
    command = COMMANDS.get(words[0])
    rest = words if command is None else words[1:]
    if last.startswith("run=") and command is not None and command.has_own_keys:
        print(*(f"run={name}" for name in (*NAMES, *_identities(words)) if f"run={name}".startswith(last)))
        return None
    os.environ["COMP_LINE"] = " ".join([program, *rest])
    return command or COMMANDS["train"]


def _identities(words: list[str]) -> Iterator[str]:
    """Yield the identities of the finished runs in `output_dir`, the latest first: looking there takes no time."""
    from sentexp.tracking.run_dir import RESULT, STATE

    given = [word.partition("=")[2] for word in words if word.startswith("output_dir=")]
    files = Path(given[-1] if given else "outputs").expanduser().glob(f"*/{RESULT}")
    for file in sorted(files, key=lambda one: -one.stat().st_mtime):
        if IDENTITY.fullmatch(file.parent.name) and not (file.parent / STATE).is_file():
            yield file.parent.name
