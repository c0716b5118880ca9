"""Folders that `datasets` has written with `save_to_disk`: Arrow files, and JSON that names them and their classes.

They are read by Arrow alone. A `DatasetDict` is a folder of such folders, one for each split.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.errors import UserError, first_line, require

if TYPE_CHECKING:
    import pyarrow as pa

STATE, FEATURES, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
ADMINISTRATIVE = (STATE, FEATURES, SPLITS)
"""Files beside the rows, which are no tables."""


def is_arrow_folder(folder: Path) -> bool:
    """Tell whether a folder is one saved data set."""
    return (folder / STATE).is_file() and (folder / FEATURES).is_file()


def saved_splits(folder: Path) -> list[str]:
    """Return the names of the splits of a saved `DatasetDict`, if the folder is one."""
    if not (folder / SPLITS).is_file():
        return []
    return sorted(split.name for split in folder.iterdir() if is_arrow_folder(split))


class ArrowFolder:
    """A saved data set; `schema` is that of its rows and `classes` the names of the classes by column.

    Args:
        folder: to read.
        name: of the folder, in the sentences.

    Raises:
        UserError: the folder is damaged, or holds a selection of rows that was never written out.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        state, features = self._json(STATE), self._json(FEATURES).get("features") or {}
        require(
            not any(state.get(key) for key in ("_indices_files", "_indices_data_files")),
            f"{name} is a selection of rows of an old release: load it with `datasets`, and save it again.",
        )
        names = [str(file.get("filename")) for file in state.get("_data_files", [])]
        require(
            bool(names) and all(Path(file).name == file for file in names),
            f"{name} names no Arrow files of its own in {STATE}: save it again.",
        )
        self.files = [folder / file for file in names]
        self.classes: dict[str, list[str]] = {
            column: feature["names"] for column, feature in features.items() if _is_class(feature)
        }
        self.listed_classes: dict[str, list[str]] = {
            column: feature["feature"]["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and _is_class(feature.get("feature"))
        }
        self.schema: pa.Schema = next(self._streams()).schema

    def batches(self) -> "Iterator[pa.Table]":
        """Yield the rows, as they were written."""
        import pyarrow as pa

        try:
            for stream in self._streams():
                for batch in stream:
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    def named(self, table: "pa.Table", columns: Sequence[str], lists: Sequence[str] = ()) -> "pa.Table":
        """Return a table with the names of its classes; a number that is not a class stays.

        Args:
            table: of the data set.
            columns: that are wanted.
            lists: those among them whose values may be lists of classes, which are written in JSON.
        """
        import pyarrow as pa

        known = self.classes | {name: self.listed_classes[name] for name in lists if name in self.listed_classes}
        for column in [column for column in columns if column in known]:
            words = [_named(value, known[column]) for value in table.column(column).to_pylist()]
            place = table.column_names.index(column)
            table = table.set_column(place, column, pa.array(words, pa.large_string()))
        return table

    def _streams(self) -> Iterator[Any]:
        import pyarrow as pa

        for file in self.files:
            try:
                yield pa.ipc.open_stream(pa.memory_map(str(file)))
            except (pa.ArrowInvalid, OSError) as error:
                raise self._unreadable(error) from None

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise self._unreadable(error) from None
        require(isinstance(content, dict), f"{self.name}: {name} is not an object of JSON: save it again.")
        known: dict[str, Any] = content
        return known

    def _unreadable(self, error: Exception) -> UserError:
        reason = first_line(error)
        return UserError(f"{self.name} cannot be read as a data set of `datasets` ({reason}): save it again.")


def _is_class(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"


def _named(value: Any, names: Sequence[str]) -> str | None:
    """Return the name of a class, or those of a list in JSON; a number that is not a class stays."""
    if isinstance(value, list):
        return json.dumps([_named(one, names) for one in value], ensure_ascii=False)
    return names[value] if value is not None and 0 <= value < len(names) else None if value is None else str(value)
