"""Sources: installed packages, local files in the layouts of their authors, or the hub; all as rows of one form."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sentexp.config import DataConfig, Multilingual, PhraseBank, RatedTexts, TableData
from sentexp.config.metric_names import SCORE
from sentexp.data.labels import LabelEncoder, classes_of
from sentexp.data.scores import ScoreEncoder
from sentexp.data.sources.layout import SLICE, RawSplits
from sentexp.data.sources.multilingual import languages
from sentexp.data.sources.phrasebank import phrase_bank
from sentexp.data.sources.rated import rated_texts
from sentexp.data.sources.table import table_splits

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SLICE", "Source", "load_source"]


@dataclass(kw_only=True, slots=True)
class Source:
    """The source's own splits, and what reading them showed.

    Each split has the columns `text` (large_string), `label` (int32, an index of `labels`; float64 of scores), where
    there are groups `group`, and for each slice `slice.<name>`. `left_out` counts rows by split and reason, `stripped`
    texts whose surrounding blanks were removed; `notes` are sentences for the person at the keyboard.
    """

    splits: dict[str, "pa.Table"]
    labels: list[str]
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    stripped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_source(data: DataConfig, scores: bool = False) -> Source:
    """Read the splits that the source has of its own; a package or a single file is one split, `train`.

    Args:
        data: the source.
        scores: whether labels are scores instead of classes.

    Raises:
        UserError: a missing path, split or column, an empty text, a label outside `data.labels`.
    """
    match data:
        case TableData():
            raw = table_splits(data)
        case PhraseBank():
            raw = RawSplits(splits={"train": phrase_bank(data)})
        case Multilingual():
            raw = languages(data)
        case RatedTexts():
            raw = RawSplits(splits={"train": rated_texts(data)})
        case _:
            raise TypeError(f"no source reads {type(data).__name__}")
    classes, notes = ([SCORE], []) if scores else classes_of(data, raw.splits)
    encoder = ScoreEncoder(data) if scores else LabelEncoder(data, classes)
    source = Source(splits={}, labels=classes, notes=raw.notes + notes)
    for name, table in raw.splits.items():
        where = f"{data.path or data.name}, split {name}"
        source.splits[name], left_out, source.stripped[name] = encoder.encode(table, where)
        source.left_out[name] = left_out | ({"ragged": raw.skipped[name]} if raw.skipped.get(name) else {})
    return source
