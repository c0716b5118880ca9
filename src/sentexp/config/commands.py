"""The commands with keys of their own, each with a file of its name in `conf/`: compare, predict, ..., ui."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sentexp.config.checks import (
    AUTO,
    check_accelerator,
    check_encoding,
    check_measure,
    check_ranges,
    given,
    number,
    read_columns,
    read_delimiter,
    seed_number,
)
from sentexp.config.data import DataConfig
from sentexp.config.text_template import text_template
from sentexp.config.tracking import TrackingBackend, TrackingConfig
from sentexp.errors import require

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class EvaluatedSplit(Enum):
    """A split whose predictions every run keeps."""

    validation = "validation"
    test = "test"


class EvaluatedRows(Enum):
    """Which rows of a data set a finished run is evaluated on: those of a split, or all of them."""

    validation = "validation"
    test = "test"
    all = "all"


class TableFormat(Enum):
    """The format of a table without a file name: the formats of standard input and output."""

    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"


class ExportFormat(Enum):
    """What a finished run is written as; see `sentexp.export.exporters`."""

    peft = "peft"
    merged = "merged"
    onnx = "onnx"
    gguf = "gguf"


class ExportType(Enum):
    """The numbers that merged weights are written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """`python -m sentexp compare`: which runs, by which metric, with which confidence.

    At most one of `sweep`, `runs`, `experiment_name` and `filter` is given.
    """

    tracking: TrackingConfig
    sweep: str | None
    runs: list[str] | None
    experiment_name: str | None
    filter: str | None
    metric: str
    split: EvaluatedSplit
    choose: str | None
    base: str | None
    by: str | None
    rows: int = number(ge=1)
    confidence: float = number(gt=0, lt=1)
    resamples: int = number(ge=100)
    seed: int = seed_number()
    output: str

    def __post_init__(self) -> None:
        """Check that one thing is compared, names and ranges."""
        named = [name for name in ("sweep", "runs", "experiment_name", "filter") if getattr(self, name) is not None]
        require(len(named) < 2, f"{' and '.join(named)} both say what to compare: give one of them.")  # noqa: PLR2004
        require(self.runs is None or len(self.runs) > 0, "runs=[] names no run: give ids, as in runs=[1a2b3c,4d5e6f].")
        check_measure("accuracy" if self.metric == AUTO else self.metric, self.confidence, self.resamples)
        check_ranges(self)
        require(
            self.choose is None or self.split is EvaluatedSplit.test,
            f"choose={self.choose} chooses on the validation rows, which then flatter it: compare on split=test.",
        )
        require(
            self.tracking.backend is not TrackingBackend.none,
            "compare reads what MLflow holds, so tracking=none has nothing to compare: leave it out.",
        )


@dataclass(kw_only=True, slots=True)
class ChosenRun:
    """The keys of every command that is about a finished run: which run, and where runs are."""

    tracking: TrackingConfig
    run: str | None
    output_dir: str

    def __post_init__(self) -> None:
        """Check ranges, and that a name is one."""
        check_ranges(self)
        require(self.run != "", "run= is empty: name a run, or leave it out for the latest finished one.")


@dataclass(kw_only=True, slots=True)
class FinishedRun(ChosenRun):
    """The further key of every command that loads a finished run: where its base model is."""

    base: str | None


@dataclass(kw_only=True, slots=True)
class PushConfig(ChosenRun):
    """`python -m sentexp push`: the weights of a finished run to a model on the Hugging Face hub."""

    to: str | None
    private: bool

    def __post_init__(self) -> None:
        """Check the name of the model."""
        ChosenRun.__post_init__(self)
        require(
            self.to is not None and HUB_NAME.fullmatch(self.to) is not None,
            f"to={self.to or ''} must be the name of a model on the hub, as to=<owner>/<name>, such as to=me/reviews.",
        )


@dataclass(kw_only=True, slots=True)
class ReadingRun(FinishedRun):
    """The further keys of every command that reads texts with a finished run: tokens of a batch, and the device."""

    max_tokens: int = number(ge=1)
    accelerator: str

    def __post_init__(self) -> None:
        """Check ranges, and the device."""
        FinishedRun.__post_init__(self)
        check_accelerator("accelerator", self.accelerator)


@dataclass(kw_only=True, slots=True)
class PredictConfig(ReadingRun):
    """`python -m sentexp predict`: which texts, and where the predictions are written."""

    input: str | None
    output: str | None
    overwrite: bool
    text: Any
    text_pair: Any
    prefix: str
    calibrated: bool
    format: TableFormat | None
    encoding: str | None
    delimiter: str | None
    columns: Any
    sheet: str | None
    chunk_rows: int = number(ge=1)

    def __post_init__(self) -> None:
        """Check the reading of text files."""
        ReadingRun.__post_init__(self)
        check_encoding("encoding", self.encoding)
        self.delimiter = read_delimiter("delimiter", self.delimiter)
        self.text = None if self.text is None else str(text_template("text", self.text))
        self.text_pair = None if self.text_pair is None else str(text_template("text_pair", self.text_pair))
        self.columns = read_columns("columns", self.columns)


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(ReadingRun):
    """`python -m sentexp evaluate`: a finished run on other data.

    Texts are cut as in the run, so `data.max_length` does not count.
    """

    data: DataConfig | None = None  # no file gives it: the list of defaults holds the choice
    split: EvaluatedRows

    def __post_init__(self) -> None:
        """Check that data are named."""
        ReadingRun.__post_init__(self)
        _ = self.dataset

    @property
    def dataset(self) -> DataConfig:
        """The data set that is named."""
        return given(
            self.data,
            "evaluate needs a data set: give data=<one of the group data>, such as data=csv data.path=reviews.csv.",
        )


@dataclass(kw_only=True, slots=True)
class ExportConfig(FinishedRun):
    """`python -m sentexp export`: a finished run for other programs."""

    format: ExportFormat | None
    dtype: ExportType
    output: str | None
    overwrite: bool
    accelerator: str

    def __post_init__(self) -> None:
        """Check that a format is named, and that it has such numbers."""
        FinishedRun.__post_init__(self)
        check_accelerator("accelerator", self.accelerator)
        formats = ", ".join(one.name for one in ExportFormat)
        require(self.format is not None, f"export needs a format: give format=<one of {formats}>.")
        plain = self.format in (ExportFormat.peft, ExportFormat.onnx)
        require(
            not plain or self.dtype is ExportType.float32,
            f"dtype={self.dtype.name} is for merged weights: format=peft keeps the adapter as it was trained, and "
            "format=onnx is written in float32; leave it out.",
        )


@dataclass(kw_only=True, slots=True)
class RegisterConfig(FinishedRun):
    """`python -m sentexp register`: a finished run as a version of a registered MLflow model.

    The version gets the `alias` if it is better, by more than noise in `metric` on the same rows of `split`, than the
    version that has it; or with `force`.
    """

    name: str | None
    alias: str
    metric: str
    split: EvaluatedSplit
    confidence: float = number(gt=0, lt=1)
    resamples: int = number(ge=100)
    seed: int = seed_number()
    force: bool
    carry_base: bool

    def __post_init__(self) -> None:
        """Check names and ranges."""
        FinishedRun.__post_init__(self)
        require(bool(self.name), "register needs the name of a model: give name=<a name>, such as name=reviews.")
        require(
            self.tracking.backend is not TrackingBackend.none,
            "register writes to MLflow's registry, and tracking=none has none: leave it out.",
        )
        check_measure("accuracy" if self.metric == AUTO else self.metric, self.confidence, self.resamples)


@dataclass(kw_only=True, slots=True)
class ServeConfig(ReadingRun):
    """`python -m sentexp serve`: a finished run behind a server in MLflow's protocol."""

    host: str
    port: int = number(ge=0, le=65535, note="0 is any that is free")
    max_bytes: int = number(ge=1)
    max_rows: int = number(ge=1)
    max_seconds: float = number(gt=0)


@dataclass(kw_only=True, slots=True)
class UiConfig:
    """`python -m sentexp ui`: MLflow's UI over the store of the runs."""

    tracking: TrackingConfig
    port: int = number(ge=0, le=65535, note="0 is any that is free")

    def __post_init__(self) -> None:
        """Check the port, and that there is a store."""
        check_ranges(self)
        require(
            self.tracking.backend is not TrackingBackend.none,
            "ui shows what MLflow holds, so tracking=none has nothing to show: leave it out.",
        )
