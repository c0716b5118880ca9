"""Tables: of an installed package, a file, a folder in GLUE's or the hub's layout, or the hub."""

import re
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import AUTO, BadRows, TableData
from sentexp.data.arrow_folders import is_arrow_folder
from sentexp.data.columns import require_columns
from sentexp.data.compressed import inner_name
from sentexp.data.label_sets import joined_cells
from sentexp.data.sources.class_folders import ENDING, class_folders, has_class_folders
from sentexp.data.sources.layout import ALIASES, SLICE, RawSplits, read_splits
from sentexp.data.sources.line_pairs import has_line_pairs, line_pairs
from sentexp.data.tables import (
    TextFormat,
    as_strings,
    is_table,
    look_at_header,
    matching_files,
    read_table,
)
from sentexp.data.text_parts import join_columns, pair_texts, text_columns
from sentexp.errors import require
from sentexp.system.hub import hub_splits, hub_tables, is_local, local_path
from sentexp.system.package_files import locate

if TYPE_CHECKING:
    import pyarrow as pa


def table_splits(data: TableData, lists: bool = False) -> RawSplits:
    """Return the splits of a table: a package, a file, a folder in GLUE's or the hub's layout, or the hub.

    Args:
        data: where it is, and its columns.
        lists: whether a label may be a list, which is then read as JSON.
    """
    columns = _columns(data)
    if data.path is None:
        _require_one_table(data, f"data={data.name} is one table of an installed package")
        return RawSplits(splits={"train": _renamed(_package_table(data, columns), data)})
    if not is_local(data.path):
        return RawSplits(splits=_hub_splits(data, data.path, columns, lists))
    folder = Path(data.path).expanduser() / (data.subset or "")
    if has_line_pairs(folder):
        return line_pairs(data, folder)
    if _has_no_table(data.path) and has_class_folders(Path(data.path).expanduser()):
        return class_folders(data, Path(data.path).expanduser())
    form = _form(data, data.label_columns if lists else [])
    return read_splits(_split_files(data), columns, form, lambda table, _: _renamed(table, data))


def look_at_columns(data: TableData) -> None:
    """Refuse local files, too large to be read in a moment, of which a header lacks a column; no row is read.

    Raises:
        UserError: a file of a split or a column is missing.
    """
    assert data.path is not None
    folder = Path(data.path).expanduser()
    if has_line_pairs(folder / (data.subset or "")) or (_has_no_table(data.path) and has_class_folders(folder)):
        return
    columns, form = _columns(data), _form(data, [])
    for file in chain.from_iterable(_split_files(data).values()):
        look_at_header(file, columns, form)


def _columns(data: TableData) -> dict[str, str]:
    """Return the columns that are read, by configuration key."""
    columns = _label_keys(data) | text_columns("data.text", data.text_template)
    columns |= text_columns("data.text_pair", data.pair_template) if data.pair_template is not None else {}
    columns |= {f"data.slices[{number}]": name for number, name in enumerate(data.slices)}
    return columns | ({"data.group": data.group} if data.group is not None else {})


def _form(data: TableData, lists: list[str]) -> TextFormat:
    """Return how files of texts are written; `lists` are columns whose values may be lists."""
    return TextFormat(
        encoding=data.encoding,
        delimiter=data.delimiter,
        quoting=data.quoting,
        skip_ragged=data.on_bad_rows is BadRows.skip,
        columns=data.columns,
        sheet=data.sheet,
        named_classes=data.labels is None,
        lists=lists,
    )


def _hub_splits(data: TableData, repo: str, columns: dict[str, str], lists: bool) -> dict[str, "pa.Table"]:
    names = {name: split for name in ALIASES if (split := getattr(data.splits, name))}
    if AUTO in names.values():
        there = hub_splits("data.path", repo, data.subset, data.revision)
        for name in [name for name, split in names.items() if split == AUTO]:
            matching = [split for split in ALIASES[name] if split in there]
            names |= {name: matching[0]} if matching else {}
    names = {name: split for name, split in names.items() if split != AUTO}
    tables = hub_tables("data.path", repo, data.subset, data.revision, list(names.values()))
    for table in tables.values():
        require_columns(table.column_names, columns, repo)
    wanted, listed = list(columns.values()), data.label_columns if lists else []
    return {name: _renamed(as_strings(tables[split], wanted, repo, listed), data) for name, split in names.items()}


def _renamed(table: "pa.Table", data: TableData) -> "pa.Table":
    """Return the columns under the names that every source gives them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {"text": join_columns(table, data.text_template), "label": _labels(table, data)}
    if data.pair_template is not None:  # the pairs of a text stay together
        columns["group"] = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(columns["text"], "")))
        columns["text"] = pair_texts(columns["text"], join_columns(table, data.pair_template))
    if data.group is not None:
        columns["group"] = pc.utf8_trim_whitespace(table.column(data.group))
    return pa.table(columns | {SLICE + name: table.column(name) for name in data.slices})


def _label_keys(data: TableData) -> dict[str, str]:
    """Return the columns of the labels by configuration key."""
    if isinstance(data.label, str):
        return {"data.label": data.label}
    return {f"data.label[{number}]": name for number, name in enumerate(data.label)}


def _labels(table: "pa.Table", data: TableData) -> "pa.ChunkedArray":
    if isinstance(data.label, str):
        return table.column(data.label)
    return joined_cells([table.column(name) for name in data.label])


def _require_one_table(data: TableData, what: str) -> None:
    require(
        data.splits.validation in (None, AUTO) and data.splits.test in (None, AUTO),
        f"{what}, but data.splits.validation={data.splits.validation} and data.splits.test={data.splits.test}: set "
        "them to null, so that they are carved from it, or name a folder that has them with data.path.",
    )


def _package_table(data: TableData, columns: dict[str, str]) -> "pa.Table":
    import pyarrow.compute as pc

    assert data.package is not None
    where = {f"data.package.where ({name})": name for name in data.package.where}
    table = read_table(locate(data.package), columns | where, TextFormat()).columns
    for name, value in data.package.where.items():
        table = table.filter(pc.equal(table.column(name), value))
    return table


def _has_no_table(path: str) -> bool:
    root = Path(path).expanduser()
    return root.is_dir() and not any(is_table(file) and file.suffix != ENDING for file in root.iterdir())


def _split_files(data: TableData) -> dict[str, list[Path]]:
    """Return the files of each split of a local path that the configuration names."""
    assert data.path is not None
    if (found := matching_files("data.path", data.path)) is not None:
        _require_one_table(data, f"data.path={data.path} is files of one table")
        return {"train": found}
    root = local_path("data.path", data.path)
    if root.is_file() or is_arrow_folder(root):
        _require_one_table(data, f"data.path={data.path} is one {'file' if root.is_file() else 'saved data set'}")
        return {"train": [root]}
    folders = [root / data.subset] if data.subset else [root, root / "data", root / "plain_text"]
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir() if is_table(file))
    files_of_splits = {}
    for name in ALIASES:
        split = getattr(data.splits, name)
        if split == AUTO:
            split = name if _named(name, files) else None
        if split is not None:
            files_of_splits[name] = _files_of(split, files, f"data.path={data.path}")
    return files_of_splits


def _files_of(split: str, files: list[Path], where: str) -> list[Path]:
    """Return the file of a split, or its shards."""
    matching = _named(split, files)
    present = ", ".join(dict.fromkeys(file.name for file in files)) or "no table files"
    require(
        bool(matching),
        f"{where} has no file for the split {split!r} (found: {present}): name its files with data.splits.train, "
        "data.splits.validation and data.splits.test (null carves the last two from train), a folder in it with "
        "data.subset, or one of the files with data.path.",
    )
    kinds = {re.sub(r"-\d+-of-\d+(?=\.)", "", file.name) for file in matching}
    require(
        has_magic(split) or len(kinds) == 1,
        f"{where} has {len(kinds)} files for the split {split!r} ({', '.join(sorted(kinds))}): name one of them with "
        f"data.splits.{'validation' if split in ALIASES['validation'] else split}=<name with its ending>.",
    )
    return matching


def _named(split: str, files: list[Path]) -> list[Path]:
    """Return the files of a split by the names that people give them, or by a pattern."""
    if has_magic(split):
        return [file for file in files if fnmatchcase(file.name, split)]
    stems = "|".join(re.escape(alias) for alias in ALIASES.get(split, (split,)))
    return [file for file in files if file.name == split or re.fullmatch(rf"({stems})(-\d+-of-\d+)?", _stem(file))]


def _stem(file: Path) -> str:
    return Path(inner_name(file)).stem
