"""The console: where everything is printed that is not an error."""

from rich.console import Console
from rich.text import Text

OUT = Console(highlight=False, soft_wrap=True)
FEW_MINUTES = 10
"""From here on people say a time without its seconds."""


def say(sentence: str) -> None:
    """Print a sentence as it is."""
    OUT.print(Text(sentence))


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= FEW_MINUTES:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if rest else "under 1 s"
