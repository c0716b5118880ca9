"""Sources: installed packages, local files in the layouts of their authors, or the hub; all as rows of one form."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sentexp.config import DataConfig, Multilingual, PhraseBank, RatedTexts, TableData, TargetKind
from sentexp.data.label_sets import LabelSetEncoder, label_set_classes
from sentexp.data.labels import LabelEncoder, classes_of, different_words
from sentexp.data.scores import ScoreEncoder
from sentexp.data.sources.layout import SLICE, RawSplits
from sentexp.data.sources.multilingual import languages
from sentexp.data.sources.phrasebank import phrase_bank
from sentexp.data.sources.rated import rated_texts
from sentexp.data.sources.table import table_splits
from sentexp.errors import require

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SLICE", "Source", "load_source"]


@dataclass(kw_only=True, slots=True)
class Source:
    """The source's own splits, and what reading them showed.

    Each split has the columns `text` (large_string), `label` (int32, an index of `labels`; float64 of scores; of sets
    of labels a 0 or 1 for each), where there are groups `group`, and for each slice `slice.<name>`. `left_out` counts
    rows by split and reason, `stripped` texts whose surrounding blanks were removed; `notes` are sentences for the
    person at the keyboard.
    """

    splits: dict[str, "pa.Table"]
    labels: list[str]
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    stripped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_source(data: DataConfig, kind: TargetKind = TargetKind.classes) -> Source:
    """Read the splits that the source has of its own; a package or a single file is one split, `train`.

    Args:
        data: the source.
        kind: what its labels are.

    Raises:
        UserError: a missing path, split or column, an empty text, a label outside `data.labels`.
    """
    match data:
        case TableData():
            _require_kind(data, kind)
            raw = table_splits(data, lists=kind is TargetKind.label_sets)
        case PhraseBank():
            raw = RawSplits(splits={"train": phrase_bank(data)})
        case Multilingual():
            raw = languages(data)
        case RatedTexts():
            raw = RawSplits(splits={"train": rated_texts(data)})
        case _:
            raise TypeError(f"no source reads {type(data).__name__}")
    require(
        "train" in raw.splits,
        f"data.path={data.path} has no split for data.splits.train=auto (found: {', '.join(raw.splits) or 'none'}): "
        "name the one to train on with data.splits.train=<name>.",
    )
    encoder, notes = _encoder(data, kind, raw)
    source = Source(splits={}, labels=encoder.classes, notes=raw.notes + notes)
    for name, table in raw.splits.items():
        where = f"{data.path or data.name}, split {name}"
        source.splits[name], left_out, source.stripped[name] = encoder.encode(table, where)
        source.left_out[name] = left_out | ({"ragged": raw.skipped[name]} if raw.skipped.get(name) else {})
    return source


def _require_kind(data: TableData, kind: TargetKind) -> None:
    require(
        isinstance(data.label, str) or kind is TargetKind.label_sets,
        f"data.label={data.label} is a column for each label of a text: set task.loss=multi_label in training, or name "
        "one column.",
    )


def _encoder(data: DataConfig, kind: TargetKind, raw: RawSplits) -> tuple[LabelEncoder, list[str]]:
    """Return what reads the labels of rows, and notes on the classes."""
    if kind is TargetKind.scores:
        return ScoreEncoder(data), []
    if kind is TargetKind.label_sets:
        assert isinstance(data, TableData)
        classes, notes = label_set_classes(data, raw.splits)
        return LabelSetEncoder(data, classes), notes
    classes, notes = classes_of(data, lambda: different_words(raw.splits))
    return LabelEncoder(data, classes), notes
