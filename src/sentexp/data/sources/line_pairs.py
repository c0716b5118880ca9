"""Texts and labels in files beside each other, line by line: `train_text.txt` and `train_labels.txt`, and so on.

That is how TweetEval is laid out. `mapping.txt` has the number and the name of each class, divided by a tab.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import AUTO, TableData
from sentexp.data.encodings import text_encoding, wrong_encoding
from sentexp.data.sources.layout import ALIASES, RawSplits, require_no_columns
from sentexp.errors import require

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS, LABELS, CLASSES = "_text.txt", "_labels.txt", "mapping.txt"


def has_line_pairs(root: Path) -> bool:
    """Tell whether a folder holds texts and labels beside each other."""
    return root.is_dir() and bool(_splits(root))


def line_pairs(data: TableData, root: Path) -> RawSplits:
    """Return the splits of such a folder; classes by their names where the configuration names none.

    Raises:
        UserError: a split that the configuration names is not there, or a file has more lines than the other.
    """
    require_no_columns(data, "a folder of texts beside labels")
    present = _splits(root)
    names = _class_names(root, data.encoding) if data.labels is None else {}
    splits = {}
    for name, aliases in ALIASES.items():
        wanted = getattr(data.splits, name)
        found = [one for one in (aliases if wanted in (AUTO, name) else (wanted,)) if one in present]
        require(
            bool(found) or wanted in (None, AUTO),
            f"data.path={data.path} has no {wanted}{TEXTS} with its {wanted}{LABELS}: it has the splits "
            f"{', '.join(present)}.",
        )
        if found:
            splits[name] = _rows(root, found[0], data.encoding, names)
    return RawSplits(splits=splits)


def _splits(root: Path) -> list[str]:
    stems = sorted(file.name.removesuffix(TEXTS) for file in root.glob(f"*{TEXTS}"))
    return [stem for stem in stems if (root / f"{stem}{LABELS}").is_file()]


def _rows(root: Path, split: str, encoding: str | None, names: dict[str, str]) -> "pa.Table":
    import pyarrow as pa

    texts, labels = (_lines(root / f"{split}{ending}", encoding) for ending in (TEXTS, LABELS))
    require(
        len(texts) == len(labels),
        f"{root / split}{TEXTS} has {len(texts):,} lines and {split}{LABELS} {len(labels):,}: each text "
        "needs its label.",
    )
    columns = {"text": texts, "label": [names.get(label.strip(), label) for label in labels]}
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def _class_names(root: Path, encoding: str | None) -> dict[str, str]:
    file = root / CLASSES
    rows = [line.split("\t") for line in _lines(file, encoding)] if file.is_file() else []
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def _lines(file: Path, encoding: str | None) -> list[str]:
    """Return the lines of a file, empty ones as well."""
    encoding = text_encoding(file, encoding)
    try:
        with file.open(encoding=encoding, newline="\n") as lines:
            return [line.rstrip("\r\n") for line in lines]
    except UnicodeError:
        raise wrong_encoding(file, encoding, "data.encoding", str(file)) from None
