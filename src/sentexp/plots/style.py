"""How pictures are drawn: greys, line styles and markers, texts as they are, no reliance on hue."""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
STYLES = (
    ("black", "-", "o"),
    ("dimgrey", "--", "s"),
    ("black", ":", "^"),
    ("grey", "-.", "D"),
    ("dimgrey", (0, (6, 1, 1, 1, 1, 1)), "v"),
)
"""Ink, line and marker of each line in a picture; more lines than these look alike."""
BEST = 4
"""Configurations that have a panel of their own."""
FEWEST = 3
"""Configurations that make a picture of a sweep; what two show is in the table."""
WIDE = 8
"""Values that span more than this factor are drawn on a logarithmic axis."""
FEW = 8
"""Up to so many values have a tick each."""
LONGEST = 36
LETTER = 0.03
"""Width of a letter below a panel, as a share of the panel's width."""
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Hiragino Sans GB", "WenQuanYi Micro Hei")
"""Tried, where they are installed, for letters that matplotlib's own font lacks."""


def drawn(picture: Callable[P, R]) -> Callable[P, R]:
    """Draw with the settings of this house, whatever those of the process are."""

    @wraps(picture)
    def draw(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import font_manager, rc_context, rcParamsDefault

        installed = {font.name for font in font_manager.fontManager.ttflist}
        sizes = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8}
        settings = {"font.family": ["DejaVu Sans", *(name for name in FONTS if name in installed)], **sizes}
        settings |= {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "legend.frameon": False,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # defaults of settings that are deprecated
            defaults = {key: value for key, value in rcParamsDefault.items() if key not in ("backend", "toolbar")}
        with rc_context(defaults | settings):
            return picture(*args, **kwargs)

    return draw


def panels(count: int, width: float, height: float, **options: Any) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its axes, side by side; width and height are those of one, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width * count, 4.5), height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def plain(text: object, longest: int = LONGEST) -> str:
    """Return a text of the data as matplotlib draws it unchanged: no mathematics, one line, cut in its middle."""
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    if len(shown) > longest:
        half = (longest - 3) // 2
        shown = f"{shown[:half]}...{shown[-half:]}"
    shown = f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves such labels out of legends
    return shown.replace("$", r"\$")


def number(value: float) -> str:
    """Return a number as a tick shows it."""
    return f"{value:,.0f}" if value >= 1000 and value == round(value) else f"{value:.4g}"  # noqa: PLR2004 (thousands)


def is_wide(values: Iterable[float]) -> bool:
    """Tell whether values belong on a logarithmic axis."""
    numbers = list(values)
    return min(numbers) > 0 and max(numbers) / min(numbers) > WIDE


def set_ticks(axes: "Axes", values: Sequence[float], wide: bool) -> None:
    """Scale the horizontal axis and label the values on it; some of them where they are many."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log" if wide else "linear")
    distinct = sorted(set(values))
    if len(distinct) <= FEW:
        axes.set_xticks(distinct, _apart(distinct, wide))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _apart(values: Sequence[float], wide: bool) -> list[str]:
    """Return the label of each value, from the last; nothing where it would touch the one before."""
    places = [math.log(value) if wide else value for value in values]
    span = places[-1] - places[0] or 1.0
    labels: list[str] = []
    free = math.inf
    for value, place in reversed(list(zip(values, places, strict=True))):
        width = LETTER * len(number(value)) * span
        fits = place + width / 2 <= free
        labels.append(number(value) if fits else "")
        free = place - width / 2 if fits else free
    return labels[::-1]


def to_svg(figure: "Figure") -> str:
    """Return a figure as SVG, the same for the same figure; texts are outlines, so that no font is needed."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "sentexp"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box replaces the letter
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
