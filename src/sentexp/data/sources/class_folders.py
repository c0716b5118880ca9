"""Texts in files of their own, in a folder for each class: `pos/*.txt` and `neg/*.txt`, or those in `train/` and so on.

That is how the large movie review set is laid out. The classes are called as their folders.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import AUTO, TableData
from sentexp.data.encodings import marked_encoding
from sentexp.data.sources.layout import ALIASES, RawSplits, require_no_columns
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    import pyarrow as pa

ENDING = ".txt"


def has_class_folders(root: Path) -> bool:
    """Tell whether a folder holds classes as folders of texts, or splits of these."""
    return bool(_classes(root)) or any(_classes(folder) for folder in _folders(root))


def class_folders(data: TableData, root: Path) -> RawSplits:
    """Return the splits of such a folder; without folders for splits all of it is `train`.

    Raises:
        UserError: a split or a column that the configuration names is not there, or a text is in another encoding.
    """
    require_no_columns(data, "a folder of texts for each class")
    if _classes(root):
        return RawSplits(splits={"train": read_classes(root, data.encoding)})
    splits = {}
    for name, aliases in ALIASES.items():
        wanted = getattr(data.splits, name)
        names = aliases if wanted in (AUTO, name) else (wanted,)
        folder = next((root / one for one in names if one is not None and _classes(root / one)), None)
        require(
            folder is not None or wanted in (None, AUTO),
            f"data.path={data.path} has no folder {wanted} with a folder of {ENDING} files for each class: it has "
            f"{', '.join(folder.name for folder in _folders(root))}.",
        )
        if folder is not None:
            splits[name] = read_classes(folder, data.encoding)
    return RawSplits(splits=splits)


def read_classes(root: Path, encoding: str | None) -> "pa.Table":
    """Return the texts of all classes in a folder, in the order of their files, as the columns text and label.

    Raises:
        UserError: a text is in another encoding.
    """
    import pyarrow as pa

    files = class_files(root)
    columns = {
        "text": pa.array((_text(file, encoding) for file in files), pa.large_string()),
        "label": pa.array((file.parent.name for file in files), pa.large_string()),
    }
    return pa.table(columns)


def class_files(root: Path) -> list[Path]:
    """Return the files of the texts of all classes in a folder; none where it holds no classes."""
    return [file for folder in _classes(root) for file in sorted(folder.glob(f"*{ENDING}"))]


def class_splits(root: Path) -> list[str]:
    """Return the names of the folders in a folder that hold classes."""
    return [folder.name for folder in _folders(root) if _classes(folder)]


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []


def _classes(root: Path) -> list[Path]:
    """Return the folders in a folder that hold texts, if there are two at least."""
    folders = [folder for folder in _folders(root) if any(folder.glob(f"*{ENDING}"))]
    return folders if len(folders) > 1 else []


def _text(file: Path, encoding: str | None) -> str:
    require(file.is_file(), f"{file} is not a file: a folder of texts may hold no devices, pipes or broken links.")
    encoding = encoding or marked_encoding(file) or "utf-8"
    try:
        return file.read_text(encoding=encoding)
    except UnicodeError:
        raise UserError(f"{file} is not {encoding}: name its encoding with data.encoding=<name>.") from None
