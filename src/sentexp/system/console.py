"""The console: where everything is printed that is not an error, and what is shown while nothing is printed."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.style import Style
from rich.text import Text

OUT = Console(highlight=False, soft_wrap=True, markup=False)
ASIDE = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
"""Beside standard output, which another program may read."""
_spinners: list[Live] = []
FEW_MINUTES = 10
"""From here on people say a time without its seconds."""


def say(sentence: str, *links: str | Path) -> None:
    """Print a sentence as it is; addresses, files and folders in it are links where the terminal has them (OSC 8)."""
    text = Text(sentence)
    for link in links:
        start = sentence.index(str(link))
        target = link.absolute().as_uri() if isinstance(link, Path) else link
        text.stylize(Style(link=target), start, start + len(str(link)))
    OUT.print(text)


def tell(sentence: str) -> None:
    """Print a sentence beside standard output, which may hold the rows of a prediction."""
    ASIDE.print(Text(sentence))


def hint(sentence: str) -> None:
    """Say on a terminal what comes next, where that takes a while and may print."""
    if ASIDE.is_terminal and not OUT.quiet:
        ASIDE.print(Text(f"{sentence} ...", style="dim"))


@contextmanager
def waiting(sentence: str) -> Iterator[None]:
    """Show a spinner with a sentence on a terminal while nothing is printed; inside of another one only that."""
    if not ASIDE.is_terminal or OUT.quiet or _spinners:
        yield
        return
    spinner = Live(
        Spinner("dots", Text(f"{sentence} ...")),
        console=ASIDE,
        transient=True,
        redirect_stdout=False,  # it would go to standard error
        redirect_stderr=False,
    )
    _spinners.append(spinner)
    try:
        with spinner:
            yield
    finally:
        _spinners.remove(spinner)


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= FEW_MINUTES:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if rest else "under 1 s"


def silence_libraries() -> None:
    """Keep packages from writing of extensions and packages that they can do without, when they are imported."""
    for name in ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
        getLogger(name).setLevel(ERROR)
