"""The console: where everything is printed that is not an error."""

from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

OUT = Console(highlight=False, soft_wrap=True)
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


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= FEW_MINUTES:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if rest else "under 1 s"
