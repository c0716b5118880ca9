"""`data.text`: a column, a list of columns, or a template such as `{title}. {body}` of what a text is made of."""

from dataclasses import dataclass
from string import Formatter
from typing import Any

from sentexp.config.checks import read_names
from sentexp.errors import require

LEGAL = "a column, a list of columns such as [title,body], or a template such as '{title}. {body}'"


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """Columns, and the text before the first, between them and behind the last: one literal more than columns."""

    columns: tuple[str, ...]
    literals: tuple[str, ...]

    @property
    def is_column(self) -> bool:
        """Whether a text is the value of one column, as it is."""
        return self.literals == ("", "")

    def __str__(self) -> str:
        """Return the template as it is typed."""
        if self.is_column:
            return self.columns[0]
        first, *others = (literal.replace("{", "{{").replace("}", "}}") for literal in self.literals)
        return first + "".join(f"{{{column}}}{literal}" for column, literal in zip(self.columns, others, strict=True))


def text_template(key: str, value: Any) -> TextTemplate:
    """Return the template of a key; the columns of a list are on lines of their own.

    Raises:
        UserError: a template without columns, or with something else in its braces than the name of one.
    """
    if isinstance(value, str) and value and not ("{" in value or "}" in value):
        return TextTemplate((value,), ("", ""))
    if not isinstance(value, str):
        columns = read_names(key, value, LEGAL)
        require(bool(columns), f"{key}=[] names no column: it must be {LEGAL}.")
        return TextTemplate(tuple(columns), ("", *["\n"] * (len(columns) - 1), ""))
    try:
        parts = list(Formatter().parse(value))
    except ValueError:
        parts = []
    literals, names = [""], []
    for literal, name, form, conversion in parts:
        literals[-1] += literal
        if name is not None:
            require(bool(name) and not form and not conversion, _wrong(key, value))
            names.append(name)
            literals.append("")
    require(bool(names), _wrong(key, value))
    return TextTemplate(tuple(names), tuple(literals))


def _wrong(key: str, value: str) -> str:
    return f"{key}={value} must be {LEGAL}: a name in each pair of braces, and {{{{ and }}}} for braces in the text."
