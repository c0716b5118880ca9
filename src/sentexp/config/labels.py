"""`data.labels`: the classes, or a mapping from what the label column holds to the classes."""

from typing import Any

from sentexp.errors import require


def read_labels(given: Any) -> list[str] | dict[str, str | None] | None:
    """Return class names, or a mapping from written labels to class names, as strings; None stays None."""
    if given is None:
        return None
    require(
        isinstance(given, list | dict),
        f"data.labels={given} must be a list of classes, a mapping such as {{1: negative, 5: positive}}, or null for "
        "the values of the label column.",
    )
    labels: Any
    if isinstance(given, dict):
        labels = {str(value): None if name is None else str(name) for value, name in given.items()}
    else:
        labels = [str(name) for name in given]
    _check_names(given, classes_of(labels))
    return labels  # type: ignore[no-any-return]


def classes_of(labels: list[str] | dict[str, str | None]) -> list[str]:
    """Return the classes in the order of their indices."""
    if isinstance(labels, dict):
        return list(dict.fromkeys(name for name in labels.values() if name is not None))
    return labels


def _check_names(given: Any, names: list[str]) -> None:
    require(
        len(names) > 1 and len(set(names)) == len(names),
        f"data.labels={given} must name at least two different classes.",
    )
    require(all(name.strip() for name in names), f"data.labels={given} has a class without a name: give it one.")
    require(
        len({name.casefold() for name in names}) == len(names),
        f"data.labels={given} must differ in more than upper and lower case.",
    )
