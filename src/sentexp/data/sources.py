"""Sources: installed packages, local files in the layouts of their authors, or the hub; all as rows of one form."""

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import (
    AGREEMENT_LEVELS,
    AUTO,
    RATING_LIMIT,
    BadRows,
    DataConfig,
    Multilingual,
    PhraseBank,
    RatedTexts,
    TableData,
)
from sentexp.data.labels import Labeller, classes_of
from sentexp.data.tables import SUFFIXES, TextFormat, as_strings, read_lines, read_table, require_columns
from sentexp.errors import UserError, require
from sentexp.system.hub import hub_splits, hub_tables, is_local, local_path, snapshot
from sentexp.system.package_files import locate

if TYPE_CHECKING:
    import pyarrow as pa

ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
AGREEMENT_FILES = {
    level: f"Sentences_{'AllAgree' if level == 'all' else level + 'Agree'}.txt" for level in AGREEMENT_LEVELS
}
LARGEST_MEMBER = 1 << 27
SLICE = "slice."


@dataclass(kw_only=True, slots=True)
class Source:
    """The source's own splits, and what reading them showed.

    Each split has the columns `text` (large_string), `label` (int32, an index of `labels`), where there are groups
    `group`, and for each slice `slice.<name>`. `left_out` counts rows by split and reason, `stripped` texts whose
    surrounding blanks were taken off; `notes` are sentences for the person at the keyboard.
    """

    splits: dict[str, "pa.Table"]
    labels: list[str]
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    stripped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_source(data: DataConfig) -> Source:
    """Read the splits that the source has of its own; a package or a single file is one split, `train`.

    Raises:
        UserError: a missing path, split or column, an empty text, a label outside `data.labels`.
    """
    match data:
        case TableData():
            raw = _table_splits(data)
        case PhraseBank():
            raw = _Raw(splits={"train": _phrase_bank(data)})
        case Multilingual():
            raw = _languages(data)
        case RatedTexts():
            raw = _Raw(splits={"train": _rated(data)})
        case _:
            raise TypeError(f"no source reads {type(data).__name__}")
    classes, notes = classes_of(data, raw.splits)
    labeller = Labeller(data, classes)
    source = Source(splits={}, labels=classes, notes=raw.notes + notes)
    for name, table in raw.splits.items():
        where = f"{data.path or data.name}, split {name}"
        source.splits[name], left_out, source.stripped[name] = labeller.conform(table, where)
        source.left_out[name] = left_out | ({"ragged": raw.skipped[name]} if raw.skipped.get(name) else {})
    return source


@dataclass(kw_only=True, slots=True)
class _Raw:
    """Tables of strings by split, notes, and rows skipped by split."""

    splits: dict[str, "pa.Table"]
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


def _table_splits(data: TableData) -> _Raw:
    """Return the splits of a table: a package, a file, a folder in GLUE's or the hub's layout, or the hub."""
    columns = {"data.text": data.text, "data.label": data.label}
    columns |= {f"data.slices[{number}]": name for number, name in enumerate(data.slices)}
    columns |= {"data.group": data.group} if data.group is not None else {}
    if data.path is None:
        _require_one_table(data, f"data={data.name} is one table of an installed package")
        return _Raw(splits={"train": _renamed(_package_table(data, columns), data)})
    if not is_local(data.path):
        return _Raw(splits=_hub_splits(data, data.path, columns))
    form = TextFormat(
        encoding=data.encoding,
        delimiter=data.delimiter,
        quoting=data.quoting,
        skip_ragged=data.on_bad_rows is BadRows.skip,
    )
    return _read_splits(_split_files(data), columns, form, lambda table, _: _renamed(table, data))


def _hub_splits(data: TableData, repo: str, columns: dict[str, str]) -> dict[str, "pa.Table"]:
    own = {name: split for name in ALIASES if (split := getattr(data.splits, name))}
    if AUTO in own.values():
        there = hub_splits("data.path", repo, data.subset, data.revision)
        for name in [name for name, split in own.items() if split == AUTO]:
            found = [split for split in ALIASES[name] if split in there]
            own |= {name: found[0]} if found else {}
    own = {name: split for name, split in own.items() if split != AUTO}
    tables = hub_tables("data.path", repo, data.subset, data.revision, list(own.values()))
    for table in tables.values():
        require_columns(table.column_names, columns, repo)
    wanted = list(columns.values())
    return {name: _renamed(as_strings(tables[split], wanted, repo), data) for name, split in own.items()}


def _read_splits(
    files: dict[str, list[Path]],
    columns: dict[str, str],
    form: TextFormat,
    finish: Callable[["pa.Table", Path], "pa.Table"],
) -> _Raw:
    """Read and join the files of each split."""
    import pyarrow as pa

    raw = _Raw(splits={})
    for name, parts in files.items():
        tables = [read_table(part, columns, form) for part in parts]
        finished = [finish(table.columns, part) for table, part in zip(tables, parts, strict=True)]
        raw.splits[name] = pa.concat_tables(finished)
        raw.notes += [note for table in tables for note in table.notes]
        raw.skipped[name] = sum(table.skipped for table in tables)
    return raw


def _renamed(table: "pa.Table", data: TableData) -> "pa.Table":
    """Return the columns under the names that every source gives them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {"text": table.column(data.text), "label": table.column(data.label)}
    if data.group is not None:
        columns["group"] = pc.utf8_trim_whitespace(table.column(data.group))
    return pa.table(columns | {SLICE + name: table.column(name) for name in data.slices})


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


def _split_files(data: TableData) -> dict[str, list[Path]]:
    """Return the files of each split of a local path that the configuration names."""
    assert data.path is not None
    root = local_path("data.path", data.path)
    if root.is_file():
        _require_one_table(data, f"data.path={data.path} is one file")
        return {"train": [root]}
    folders = [root / data.subset] if data.subset else [root, root / "data", root / "plain_text"]
    files = sorted(
        file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.suffix.lower() in SUFFIXES
    )
    found = {}
    for name in ALIASES:
        split = getattr(data.splits, name)
        if split == AUTO:
            split = name if _named(name, files) else None
        if split is not None:
            found[name] = _files_of(split, files, f"data.path={data.path}")
    return found


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
    kinds = {re.sub(r"-\d+-of-\d+$", "", file.stem) + file.suffix for file in matching}
    require(
        len(kinds) == 1,
        f"{where} has {len(kinds)} files for the split {split!r} ({', '.join(sorted(kinds))}): name one of them with "
        f"data.splits.{'validation' if split in ALIASES['validation'] else split}=<name with its ending>.",
    )
    return matching


def _named(split: str, files: list[Path]) -> list[Path]:
    """Return the files of a split by the names that people give them."""
    stems = "|".join(re.escape(alias) for alias in ALIASES.get(split, (split,)))
    return [file for file in files if file.name == split or re.fullmatch(rf"({stems})(-\d+-of-\d+)?", file.stem)]


def _languages(data: Multilingual) -> _Raw:
    """Return the splits of the chosen languages; a language without a training split is only evaluated."""
    import pyarrow as pa

    assert data.path is not None
    root = _root(data, ["*.csv"])
    folders = {
        folder.name: folder
        for place in (root, root / "data")
        if place.is_dir()
        for folder in sorted(place.iterdir())
        if folder.is_dir() and any(folder.glob("*.csv"))
    }
    require(bool(folders), f"data.path={data.path} has no folders <language>/ with train.csv, valid.csv and test.csv.")
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

    def with_language(table: "pa.Table", file: Path) -> "pa.Table":
        language = pa.repeat(pa.scalar(file.parent.name, pa.large_string()), table.num_rows)
        return table.append_column(SLICE + "language", language)

    columns = {"text of multilingual": "text", "label of multilingual": "label"}
    raw = _read_splits(
        {name: parts for name, parts in files.items() if parts},
        columns,
        TextFormat(skip_ragged=data.on_bad_rows is BadRows.skip),
        with_language,
    )
    if untrained:
        raw.notes.append(f"{', '.join(untrained)}: no training texts here, so only validation and test hold them.")
    return raw


def _phrase_bank(data: PhraseBank) -> "pa.Table":
    """Return all sentences, each with the highest level of agreement whose file holds it; the four files nest."""
    import pyarrow as pa

    lines = {level: _agreement_lines(data, name) for level, name in AGREEMENT_FILES.items()}
    held = {level: Counter(found) for level, found in lines.items()}
    seen = Counter[str]()
    sentences = []
    for number, line in enumerate(lines[AGREEMENT_LEVELS[0]], start=1):
        text, at, label = line.rpartition("@")
        require(
            bool(at),
            f"Line {number} of {AGREEMENT_FILES[AGREEMENT_LEVELS[0]]} of data.path={data.path} reads {line[:60]!r}: it "
            "must be text@label.",
        )
        seen[line] += 1  # a sentence that stands twice here may stand once in a higher level
        level = [level for level in AGREEMENT_LEVELS if held[level][line] >= seen[line]][-1]
        sentences.append((text, label, level))
    require(bool(sentences), f"data.path={data.path} has no sentences in its files: fetch the archive again.")
    columns = [pa.array(values, pa.large_string()) for values in zip(*sentences, strict=True)]
    return pa.Table.from_arrays(columns, names=["text", "label", SLICE + "agreement"])


def _agreement_lines(data: PhraseBank, name: str) -> list[str]:
    """Return the lines of one of the archive's files, from a folder, from a zip, or from a folder with a zip."""
    root = _root(data, ["*.zip", "*Agree.txt"])
    if root.is_dir():
        plain = sorted(root.rglob(name))
        if plain:
            with plain[0].open("rb") as stream:
                return read_lines(stream, "latin-1")
        archives = sorted(root.rglob("*.zip"))
    else:
        archives = [root]
    require(
        bool(archives),
        f"data.path={data.path} has no {name} and no zip that could hold it: pass the folder of the four "
        "Sentences_*Agree.txt, or the archive FinancialPhraseBank-v1.0.zip.",
    )
    try:
        with zipfile.ZipFile(archives[0]) as archive:
            return _member_lines(archive, name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archives[0]} is no whole zip ({error}): fetch it again.") from None


def _member_lines(archive: zipfile.ZipFile, name: str) -> list[str]:
    """Read a member in memory; nothing is ever extracted."""
    members = [m for m in archive.infolist() if Path(m.filename).name == name and "__MACOSX" not in m.filename]
    require(
        len(members) == 1,
        f"{archive.filename} holds {len(members)} files of the name {name}: it must hold exactly one.",
    )
    parts = Path(members[0].filename.replace("\\", "/")).parts
    require(
        ".." not in parts and not Path(members[0].filename).is_absolute(),
        f"{archive.filename} holds {members[0].filename}, which points out of the archive: it is not trusted.",
    )
    require(
        members[0].file_size < LARGEST_MEMBER,
        f"{archive.filename} holds {name} of {members[0].file_size:,} bytes: the real one is below one million.",
    )
    with archive.open(members[0]) as stream:
        return read_lines(stream, "latin-1")  # type: ignore[arg-type]


def _rated(data: RatedTexts) -> "pa.Table":
    """Return the texts of the chosen domains with the class that their mean rating falls into."""
    import pyarrow as pa

    tables = []
    for domain in data.domains:
        file = _root(data, []) / Path(data.files[domain].file).name if data.path else locate(data.files[domain])
        with local_path("data.path", str(file)).open("rb") as stream:
            rows = [line.split("\t") for line in read_lines(stream, "utf-8")[1:]]
        for number, row in enumerate(rows, start=1):
            require(
                len(row) == len(("id", "rating", "text")),
                f"Row {number} of {file} has {len(row)} columns, not an id, a rating and a text: mend it.",
            )
        string = pa.large_string()
        columns: dict[str, Any] = {
            "text": [text for _, _, text in rows],
            "label": [_rating_class(rating, data, f"Row {n} of {file}") for n, (_, rating, _) in enumerate(rows, 1)],
            "group": [f"{domain} {number.partition('_')[0]}" for number, _, _ in rows],  # the document: 12_3 is its 3rd
            SLICE + "domain": [domain] * len(rows),
        }
        tables.append(pa.table({name: pa.array(values, string) for name, values in columns.items()}))
    return pa.concat_tables(tables)


def _rating_class(rating: str, data: RatedTexts, where: str) -> str:
    try:
        value = float(rating)
    except ValueError:
        value = RATING_LIMIT + 1
    require(
        abs(value) <= RATING_LIMIT,
        f"{where} has the rating {rating!r}: it must be a number from -{RATING_LIMIT:g} to {RATING_LIMIT:g}.",
    )
    if abs(value) <= data.neutral_band:
        return "neutral"
    return "positive" if value > 0 else "negative"


def _root(data: DataConfig, patterns: list[str]) -> Path:
    """Return the folder or file of a data set with a layout of its own."""
    assert data.path is not None
    if is_local(data.path):
        return local_path("data.path", data.path)
    return snapshot("data.path", data.path, data.revision, "dataset", patterns)
