"""Sources: an installed package, local files in the hub's or GLUE's layout, or the hub; all as `text`, `label` rows."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import DataConfig
from sentexp.errors import UserError, require
from sentexp.hub import is_local, local_path, snapshot
from sentexp.installed import cache_dir, locate

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = {".tsv": "csv", ".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
ALIASES = {"validation": ("validation", "valid", "val", "dev"), "train": ("train",), "test": ("test",)}


def load_source(data: DataConfig) -> dict[str, "Dataset"]:
    """Return the source's own splits, each with the columns `text` (str) and `label` (int, an index of `data.labels`).

    A package or a single file is one split, `train`. Only the splits that the configuration names are read.

    Raises:
        UserError: a missing path, split or column, an empty text, a label outside `data.labels`, a single class.
    """
    if data.path is None:
        _require_one_table(data, f"data={data.name} is one table of an installed package")
        tables = {data.splits.train: _package_table(data)}
    else:
        tables = {name: _read(files) for name, files in _split_files(data).items()}
    return {name: _conform(table, data, name) for name, table in tables.items()}


def _require_one_table(data: DataConfig, what: str) -> None:
    require(
        data.splits.validation is None and data.splits.test is None,
        f"{what}, but data.splits.validation={data.splits.validation} and data.splits.test={data.splits.test}: set "
        "them to null, so that they are carved from it, or name a folder that has them with data.path.",
    )


def _package_table(data: DataConfig) -> "Dataset":
    import pandas as pd
    from datasets import Dataset

    assert data.package is not None
    frame = pd.read_csv(locate(data.package), dtype=str, keep_default_na=False)
    for column, value in data.package.where.items():
        frame = frame[frame[column] == value]
    return Dataset.from_pandas(frame, preserve_index=False)


def _split_files(data: DataConfig) -> dict[str, list[Path]]:
    """Return the files of each split that the configuration names."""
    assert data.path is not None
    if not is_local(data.path):
        root = snapshot("data.path", data.path, data.revision, "dataset")
    else:
        root = local_path("data.path", data.path)
    if root.is_file():
        _kind(root)
        _require_one_table(data, f"data.path={data.path} is one file")
        return {data.splits.train: [root]}
    folders = [root / data.subset] if data.subset else [root, root / "data", root / "plain_text"]
    files = sorted(
        file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.suffix in SUFFIXES
    )
    found = {}
    for split in dict.fromkeys(filter(None, (data.splits.train, data.splits.validation, data.splits.test))):
        stems = "|".join(re.escape(alias) for alias in ALIASES.get(split, (split,)))
        matching = [file for file in files if re.fullmatch(rf"({stems})(-\d+-of-\d+)?", file.stem)]
        present = ", ".join(dict.fromkeys(file.name for file in files)) or "no table files"
        require(
            bool(matching),
            f"data.path={data.path} has no file for the split {split!r} (found: {present}): name the splits with "
            "data.splits.train, data.splits.validation and data.splits.test (null carves one from train), or the "
            "folder with data.subset.",
        )
        found[split] = matching
    return found


def _kind(file: Path) -> str:
    require(
        file.suffix in SUFFIXES,
        f"data.path={file} has the ending {file.suffix!r}: it must be one of {', '.join(SUFFIXES)}.",
    )
    return SUFFIXES[file.suffix]


def _read(files: list[Path]) -> "Dataset":
    """Read the files of one split; GLUE's TSV has no quoting."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    options: dict[str, Any] = {}
    if files[0].suffix == ".tsv":
        options = {"sep": "\t", "quoting": 3}
    if _kind(files[0]) == "csv":
        options["keep_default_na"] = False
    try:
        return load_dataset(
            _kind(files[0]),
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(cache_dir() / "datasets"),
            **options,
        )
    except (DatasetGenerationError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].rstrip(".")
        raise UserError(
            f"data.path: {files[0]} cannot be read as {files[0].suffix} ({reason}): it must be a whole table in UTF-8 "
            "with a header and at least one row."
        ) from None


def _conform(table: "Dataset", data: DataConfig, split: str) -> "Dataset":
    """Reduce a table to `text` and `label`, checking every row."""
    where = f"{data.path or data.name}, split {split}"
    for key, column in (("data.text", data.text), ("data.label", data.label)):
        require(
            column in table.column_names,
            f"{key}={column} is not a column of {where}: its columns are {', '.join(table.column_names)}.",
        )
    texts = [_text(value, row, where) for row, value in enumerate(table[data.text])]
    ids = {name.casefold(): index for index, name in enumerate(data.labels)}
    labels = [_label(value, ids, row, where, data) for row, value in enumerate(table[data.label])]
    from datasets import Dataset

    return Dataset.from_dict({"text": texts, "label": labels})


def _text(value: object, row: int, where: str) -> str:
    text = "" if value is None else str(value).strip()
    require(bool(text), f"Row {row + 1} of {where} has an empty text: remove the row or fill it in.")
    return text


def _label(value: object, ids: dict[str, int], row: int, where: str, data: DataConfig) -> int:
    """Return the index of a label given by name, or by number counted from 0."""
    word = str(value).strip()
    if (by_name := ids.get(word.casefold())) is not None:
        return by_name
    numbered = not any(name.isdecimal() for name in ids)  # else a number is a name
    if numbered and re.fullmatch(r"\d+(\.0)?", word) and float(word) < len(ids):
        return int(float(word))
    hint = " (-1 marks hidden labels: name a labelled split with data.splits.test)" if word == "-1" else ""
    raise UserError(
        f"Row {row + 1} of {where} has the label {word!r}, which is none of data.labels={data.labels} and no number "
        f"from 0 to {len(ids) - 1}{hint}."
    )
