"""Texts with a mean rating of several people, in files of an id, the rating and the text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.config import RATING_LIMIT, RatedTexts
from sentexp.data.sources.layout import SLICE, dataset_root
from sentexp.data.tables import read_lines
from sentexp.errors import require
from sentexp.system.hub import local_path
from sentexp.system.package_files import locate

if TYPE_CHECKING:
    import pyarrow as pa


def rated_texts(data: RatedTexts) -> "pa.Table":
    """Return the texts of the chosen domains with the class that their mean rating falls into."""
    import pyarrow as pa

    tables = []
    for domain in data.domains:
        file = dataset_root(data, []) / Path(data.files[domain].file).name if data.path else locate(data.files[domain])
        with local_path("data.path", str(file)).open("rb") as stream:
            rows = [line.split("\t") for line in read_lines(stream, "utf-8")[1:]]
        for number, row in enumerate(rows, start=1):
            require(
                len(row) == len(("id", "rating", "text")),
                f"Row {number} of {file} has {len(row)} columns, not an id, a rating and a text: fix it.",
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
