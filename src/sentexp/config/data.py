"""`conf/data/`: the rows, their labels and their splits. `conf/data.yaml` holds what all data sets share."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sentexp.config.checks import (
    AUTO,
    check_count_or_fraction,
    check_encoding,
    check_ranges,
    number,
    read_columns,
    read_delimiter,
    read_names,
)
from sentexp.config.labels import classes_of, read_labels
from sentexp.config.model import PackageFile
from sentexp.config.origin import title
from sentexp.config.text_template import TextTemplate, text_template
from sentexp.errors import require

AGREEMENT_LEVELS = ("50", "66", "75", "all")
"""Per cent of the annotators that agree at least; a sentence of one level is a sentence of those before it."""

RATING_LIMIT = 4.0


class BadRows(Enum):
    """What to do with a row that cannot be used: stop at it, or leave it out, count it and tell."""

    error = "error"
    skip = "skip"


class Sampling(Enum):
    """How the rows of an epoch are drawn: each once, or with replacement so that classes or slices are as frequent."""

    natural = "natural"
    balanced_labels = "balanced_labels"
    balanced_slices = "balanced_slices"


@dataclass(kw_only=True, slots=True)
class PackageTable(PackageFile):
    """A CSV file inside an installed distribution; `where` keeps the rows whose columns hold these values."""

    where: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Splits:
    """The source's name for each split."""

    train: str
    validation: str | None
    test: str | None

    def __post_init__(self) -> None:
        """One split of the source is one split of the run (law 10)."""
        named = [name for name in (self.train, self.validation, self.test) if name not in (None, AUTO)]
        require(
            len(set(named)) == len(named),
            f"data.splits.train={self.train}, data.splits.validation={self.validation} and data.splits.test="
            f"{self.test} must be three different splits of the source; null carves one from train.",
        )


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What every data set shares: labels, splits by hash, subsets, imbalance."""

    name: str
    labels: Any
    path: str | None
    revision: str | None
    strip: bool
    on_bad_rows: BadRows
    deduplicate: bool
    validation_fraction: float = number(gt=0, lt=1)
    test_fraction: float = number(gt=0, lt=1)
    split_seed: int
    train_subset: float | None
    validation_subset: float | None
    subset_seed: int
    class_weights: Any
    sampling: Sampling
    max_length: int = number(ge=1)
    ordered: bool

    def __post_init__(self) -> None:
        """Check labels, fractions, subsets and weights."""
        require(
            self._is_somewhere(),
            f"data.path is empty and data={self.name} has no installed package: pass data.path=<folder, file or hub "
            "id>.",
        )
        self.labels = read_labels(self.labels)
        check_ranges(self, "data")
        self._check_splits()
        self._check_class_weights()
        require(
            self.sampling is not Sampling.balanced_slices or bool(self.slice_names()),
            f"data.sampling=balanced_slices draws the slices of data={self.name} equally often, but it has none: name "
            "a column with data.slices=<column>.",
        )

    @property
    def title(self) -> str:
        """What the data set is called: the name of its option only where it is the option's own."""
        return title("data", self)

    def class_names(self) -> list[str] | None:
        """Return the classes in the order of their indices, or None when they are the values that are found."""
        return None if self.labels is None else classes_of(self.labels)

    def slice_names(self) -> list[str]:
        """Return the names of the columns whose values are slices."""
        return []

    def distribution(self) -> str | None:
        """Return the installed distribution that the rows come from, if they do."""
        return None

    def _is_somewhere(self) -> bool:
        return self.path is not None

    def _check_splits(self) -> None:
        require(
            self.validation_fraction + self.test_fraction < 1,
            f"data.validation_fraction={self.validation_fraction} and data.test_fraction={self.test_fraction} leave "
            "nothing to train on: their sum must stay below 1.",
        )
        legal = "a number of rows, a fraction below 1, or null for all rows"
        check_count_or_fraction("data.train_subset", self.train_subset, legal)
        check_count_or_fraction("data.validation_subset", self.validation_subset, legal)

    def _check_class_weights(self) -> None:
        given = self.class_weights
        require(
            given in (None, "balanced")
            or (
                isinstance(given, list)
                and all(isinstance(weight, int | float) and 0 < weight < math.inf for weight in given)
                and (self.labels is None or len(given) == len(self.class_names() or []))
            ),
            f"data.class_weights={given} must be null, balanced, or one number above 0 for each of the classes "
            f"{self.class_names() or 'that the data hold'}.",
        )


@dataclass(kw_only=True, slots=True)
class TableData(DataConfig):
    """Rows of a table: `path` if given (file, folder or hub id), else the installed `package`."""

    text: Any
    label: Any
    label_delimiter: str
    slices: Any
    group: str | None
    subset: str | None
    package: PackageTable | None
    splits: Splits
    encoding: str | None
    delimiter: str | None
    quoting: bool | None
    columns: Any
    sheet: str | None
    text_pair: Any

    def __post_init__(self) -> None:
        """Check columns and the reading of text files."""
        _ = self.text_template, self.pair_template
        self.slices = read_names("data.slices", self.slices, "a column or a list of columns such as [language,source]")
        self.columns = read_columns("data.columns", self.columns)
        self._check_label()
        check_encoding("data.encoding", self.encoding, ", and null detects it")
        self.delimiter = read_delimiter(
            "data.delimiter", self.delimiter, ", or null for the one that belongs to the ending of the file"
        )
        DataConfig.__post_init__(self)

    def _check_label(self) -> None:
        if isinstance(self.label, int | float):
            self.label = str(self.label)
        if not isinstance(self.label, str):
            legal = "a column, or a column of 0 and 1 for each label such as [joy,anger]"
            self.label = read_names("data.label", self.label, legal)
            require(len(self.label) > 1, f"data.label={self.label} must be {legal}: two at least.")
            require(
                self.labels is None,
                f"data.labels={self.labels} names classes, and data.label={self.label} has a column for each: set "
                "data.labels=null.",
            )
        require(
            bool(self.label_delimiter) and not set(self.label_delimiter) & set("[]\"'"),
            f'data.label_delimiter={self.label_delimiter!r} must be the text between two labels, such as ; or ","',
        )

    @property
    def label_columns(self) -> list[str]:
        """The column of the labels, or a column for each."""
        return [self.label] if isinstance(self.label, str) else list(self.label)

    @property
    def text_template(self) -> TextTemplate:
        """What a text is made of."""
        return text_template("data.text", self.text)

    @property
    def pair_template(self) -> TextTemplate | None:
        """What the second text of each row is made of, if rows have two."""
        return None if self.text_pair is None else text_template("data.text_pair", self.text_pair)

    def slice_names(self) -> list[str]:
        """Return the columns named in `data.slices`."""
        return list(self.slices)

    def distribution(self) -> str | None:
        """Return the distribution that holds the table, if no path is given."""
        return self.package.distribution if self.package is not None and self.path is None else None

    def _is_somewhere(self) -> bool:
        return self.path is not None or self.package is not None


@dataclass(kw_only=True, slots=True)
class PhraseBank(DataConfig):
    """Financial PhraseBank: the sentences on which at least `agreement` per cent of the annotators agree, or `all`."""

    agreement: str

    def __post_init__(self) -> None:
        """There are four levels."""
        require(
            self.agreement in AGREEMENT_LEVELS,
            f"data.agreement={self.agreement} must be one of {', '.join(AGREEMENT_LEVELS)}.",
        )
        DataConfig.__post_init__(self)

    def slice_names(self) -> list[str]:
        """Return the slice that each sentence has: the level at which its annotators agree."""
        return ["agreement"]


@dataclass(kw_only=True, slots=True)
class Multilingual(DataConfig):
    """Texts by language in folders of their own, with their own splits; `languages` is a list of folders, or `all`."""

    languages: Any

    def __post_init__(self) -> None:
        """Languages are a list, or all."""
        if self.languages != "all":
            self.languages = read_names("data.languages", self.languages, "all, or a list such as [english,german]")
            require(bool(self.languages), "data.languages=[] names no language: use all, or a list of them.")
        DataConfig.__post_init__(self)

    def slice_names(self) -> list[str]:
        """Return the slice that each text has: its language."""
        return ["language"]


@dataclass(kw_only=True, slots=True)
class RatedTexts(DataConfig):
    """Texts with a mean human rating in [-4, 4]: negative, neutral within `neutral_band` of 0, or positive."""

    domains: Any
    neutral_band: float = number(ge=0, lt=RATING_LIMIT, note="the largest rating")
    files: dict[str, PackageFile]

    def __post_init__(self) -> None:
        """Domains are those of the files."""
        if self.domains == "all":
            self.domains = list(self.files)
        self.domains = read_names("data.domains", self.domains, f"all, or a list of {', '.join(self.files)}")
        wrong = [name for name in self.domains if name not in self.files]
        require(
            bool(self.domains) and not wrong,
            f"data.domains={self.domains} must be all, or a list of {', '.join(self.files)}.",
        )
        DataConfig.__post_init__(self)

    def slice_names(self) -> list[str]:
        """Return the slice that each text has: its domain."""
        return ["domain"]

    def distribution(self) -> str | None:
        """Return the distribution that holds the files, if no path is given."""
        return self.files[self.domains[0]].distribution if self.path is None else None

    def _is_somewhere(self) -> bool:
        return True
