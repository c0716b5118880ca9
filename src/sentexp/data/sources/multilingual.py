"""One folder for each language, with train.csv, valid.csv and test.csv."""

from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import BadRows, Multilingual
from sentexp.data.sources.layout import ALIASES, SLICE, RawSplits, dataset_root, read_splits
from sentexp.data.tables import TextFormat
from sentexp.errors import require

if TYPE_CHECKING:
    import pyarrow as pa


def languages(data: Multilingual) -> RawSplits:
    """Return the splits of the chosen languages; a language without a training split is only evaluated."""
    folders = _language_folders(data)
    chosen = list(folders) if data.languages == "all" else data.languages
    unknown = [name for name in chosen if name not in folders]
    require(
        not unknown,
        f"data.languages={data.languages} names {', '.join(unknown)}, which {data.path} lacks: it has "
        f"{', '.join(folders)}; all takes them all.",
    )
    files = {
        name: [
            file
            for language in chosen
            for alias in ALIASES[name]
            if (file := folders[language] / f"{alias}.csv").is_file()
        ]
        for name in ALIASES
    }
    untrained = [name for name in chosen if not any(file.parent.name == name for file in files["train"])]
    require(
        len(untrained) < len(chosen),
        f"data.languages={data.languages}: {', '.join(untrained)} has no train.csv in {data.path}, so there is nothing "
        "to train on: add a language that has one.",
    )

    columns = {"text of multilingual": "text", "label of multilingual": "label"}
    raw = read_splits(
        {name: parts for name, parts in files.items() if parts},
        columns,
        TextFormat(skip_ragged=data.on_bad_rows is BadRows.skip),
        _with_language,
    )
    if untrained:
        raw.notes.append(f"{', '.join(untrained)}: no training texts here, so only validation and test hold them.")
    return raw


def _language_folders(data: Multilingual) -> dict[str, Path]:
    """Return the folder of each language by its name."""
    root = dataset_root(data, ["*.csv"])
    folders = {
        folder.name: folder
        for place in (root, root / "data")
        if place.is_dir()
        for folder in sorted(place.iterdir())
        if folder.is_dir() and any(folder.glob("*.csv"))
    }
    require(bool(folders), f"data.path={data.path} has no folders <language>/ with train.csv, valid.csv and test.csv.")
    return folders


def _with_language(table: "pa.Table", file: Path) -> "pa.Table":
    """Return the rows of a file with the name of its folder as a slice."""
    import pyarrow as pa

    language = pa.repeat(pa.scalar(file.parent.name, pa.large_string()), table.num_rows)
    return table.append_column(SLICE + "language", language)
