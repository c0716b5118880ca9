"""`python -m sentexp predict`: labels and probabilities of other texts, beside the columns of their file.

The input goes through in chunks. Each is scored from short to long, written in its own order, and never read again: a
kill costs the chunk that it was at.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sentexp.config import PredictConfig, TargetKind
from sentexp.data.delimited import FORMULA, TextFormat
from sentexp.errors import require
from sentexp.inference.answers import answers, output_columns, what_is_missing
from sentexp.inference.progress import Meter
from sentexp.inference.readers import PIECE, STANDARD, format_of, input_files, open_source
from sentexp.inference.row_formats import Chunk
from sentexp.inference.run_lookup import Finished, chosen_run
from sentexp.inference.scorer import Scorer
from sentexp.inference.source import Source
from sentexp.inference.writers import Output, Predictions, open_output
from sentexp.system.console import OUT, tell
from sentexp.system.memory import trim_memory
from sentexp.tracking.identity import digest_of

SAMPLE = 1 << 20
PREFIX = "predicted_"
"""Before the names of the added columns, where the input has columns of these names."""


def predict(config: PredictConfig, sentence: str | None = None) -> None:
    """Write labels and probabilities of the texts of a table, or print those of one sentence.

    Args:
        config: which run, which input, where to.
        sentence: in place of an input.

    Raises:
        UserError: anything in the configuration, the run or the input that the user can fix.
    """
    require(
        (sentence is None) != (config.input is None),
        'predict takes input=<file> or --text "a sentence": give one of them.',
    )
    if sentence is None:
        _check_output(config)
    else:
        require(bool(sentence.strip()), "--text is empty: give it a sentence.")
    finished = chosen_run(config)
    require(
        not (config.calibrated and finished.trained.kind is not TargetKind.classes),
        f"calibrated=true corrects probabilities of classes, and run {finished.trained.identity} predicts "
        f"{finished.trained.kind.value}: leave it out.",
    )
    if sentence is not None:
        trained = finished.trained
        require(
            trained.text_pair is None,
            f"--text takes a single text, and run {trained.identity} reads pairs (data.text_pair={trained.text_pair}): "
            "use input=<file>, or serve.",
        )
        if config.run is not None:
            tell(f"run {finished.name}")
        _print_sentence(_scorer(finished, config), sentence, config.calibrated)
        return
    assert config.input is not None
    form = config.format.name if config.input == STANDARD and config.format is not None else None
    piece = min(PIECE, config.chunk_rows)
    try:
        with open_source(config.input, form, _text_format(config), piece) as source:
            _predict_table(finished, config, source)
    except BrokenPipeError:  # who reads standard output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _predict_table(finished: Finished, config: PredictConfig, source: Source) -> None:
    column = source.choose_text(config.text, finished.trained.text)
    pair = source.choose_pair(config.text_pair, finished.trained.text_pair)
    names = output_columns(finished.trained)
    if not config.prefix and (kept := [name for name in names if name in source.columns]):
        tell(f"{source.name} has a column {' and '.join(kept)}, which stays: the new ones begin with {PREFIX}.")
        config = replace(config, prefix=PREFIX)
    added = [config.prefix + name for name in names]
    taken = [name for name in added if name in source.columns]
    require(
        not taken,
        f"{source.name} has a column {' and '.join(taken)} already, and predict never replaces one: give "
        "prefix=<another beginning of the new names>.",
    )
    assert config.output is not None
    form = _output_form(config, source)
    task = _task(finished, config, column if pair is None else f"{column}\0{pair}", form)
    delimiter = source.delimiter if source.form == "csv" else ","
    output = open_output(config.output, form, source.columns, added, delimiter, task, source.schema)
    beside = "" if pair is None else f", the second in {pair},"
    meter = Meter(source.rows, output.rows)
    try:
        tell(f"run {finished.name}; texts in the column {column}{beside} of {source.name}")
        for note in source.notes:
            tell(note)
        if output.rows:
            tell(f"Resuming after row {output.rows:,}, where an earlier start of the same command has stopped.")
        chunks = source.chunks(column, config.chunk_rows, pair)
        formulas = _score_all(chunks, output, config, meter, lambda: _scorer(finished, config))
        seconds = meter.seconds
        output.finish()
    finally:
        output.close()
    if output.empty:
        whose = "1 row has no text: its" if output.empty == 1 else f"{output.empty:,} rows have no text: their"
        tell(f"{whose} {what_is_missing(finished.trained)} empty.")
    if formulas and form in ("csv", "tsv") and config.output != STANDARD:
        begin = "1 text begins" if formulas == 1 else f"{formulas:,} texts begin"
        tell(f"{begin} as a formula does: import {config.output} into a spreadsheet as text.")
    where = "on standard output" if config.output == STANDARD else f"in {config.output}"
    speed = f"; {meter.rows:,} took {seconds:.1f} s, {meter.rows / seconds:,.1f} rows/s" if meter.rows else ""
    are = "1 row is" if output.rows == 1 else f"{output.rows:,} rows are"
    tell(f"{are} {where}{speed}.")


def _score_all(
    chunks: Iterator[Chunk], output: Output, config: PredictConfig, meter: Meter, scorer_of: Callable[[], Scorer]
) -> int:
    """Score and write every row that is not in the output yet; return how many texts look like formulas."""
    scorer: Scorer | None = None
    formula, found = re.compile(FORMULA), 0
    written = output.rows  # by an earlier start
    with meter:
        for chunk in chunks:
            if written >= len(chunk.texts):
                written -= len(chunk.texts)
                continue
            if scorer is None:  # not before the input is read
                scorer = scorer_of()
                meter.begin()
            rest, written = chunk.after(written), 0
            found += sum(text is not None and formula.match(text) is not None for text in rest.texts)
            output.write(rest, score_chunk(scorer, rest, config.calibrated, meter.advance))
            trim_memory()
    return found


def score_chunk(
    scorer: Scorer, chunk: Chunk, calibrated: bool = False, done: Callable[[int], object] = lambda _: None
) -> Predictions:
    """Return the columns of `output_columns` for each row of a chunk, null without a text.

    Args:
        scorer: of the run.
        chunk: of the input.
        calibrated: at the temperature that the run has fitted.
        done: is called with the rows of each batch.
    """
    texts = _stripped(chunk.texts) if scorer.trained.strip else chunk.texts
    kept = [number for number, text in enumerate(texts) if text is not None and text.strip()]
    scores = scorer.score([texts[number] or "" for number in kept], done)
    done(len(texts) - len(kept))
    probabilities = scorer.probabilities_of(scores, calibrated)
    predictions: Predictions = [[None] * len(output_columns(scorer.trained)) for _ in texts]
    for number, first, row in zip(kept, answers(scorer.trained, probabilities), probabilities, strict=True):
        predictions[number] = [*first, *(float(str(value)) for value in row)]  # the shortest number that is it
    return predictions


def _stripped(texts: list[str | None]) -> list[str | None]:
    """Take surrounding blanks off, as a run does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stripped: list[str | None] = pc.utf8_trim_whitespace(pa.array(texts, pa.large_string())).to_pylist()
    return stripped


def _scorer(finished: Finished, config: PredictConfig) -> Scorer:
    return Scorer(finished.trained, config.base, config.accelerator, config.max_tokens)


def _check_output(config: PredictConfig) -> None:
    """Refuse an output that cannot be written, before anything is loaded."""
    require(config.output is not None, "output is missing: name a file, or - for standard output.")
    assert config.output is not None
    assert config.input is not None
    if config.output == STANDARD:
        return
    format_of("output", config.output)
    file = Path(config.output).expanduser()
    require(not file.is_dir(), f"output={config.output} is a folder: name a file in it.")
    require(file.parent.is_dir(), f"output={config.output}: there is no folder {file.parent}: make it first.")
    read = [] if config.input == STANDARD or not file.exists() else input_files(config.input)
    require(
        not any(one.exists() and file.samefile(one) for one in read),
        f"output={config.output} is the input: name another file.",
    )
    require(
        config.overwrite or not file.exists(),
        f"output={config.output} is there already: name another file, or replace it with overwrite=true.",
    )


def _output_form(config: PredictConfig, source: Source) -> str:
    assert config.output is not None
    if config.output != STANDARD:
        return format_of("output", config.output)
    if config.format is not None:
        return config.format.name
    return source.form if source.form in ("csv", "tsv") else "jsonl"


def _text_format(config: PredictConfig) -> TextFormat:
    return TextFormat(
        encoding=config.encoding, delimiter=config.delimiter, columns=list(config.columns), sheet=config.sheet
    )


def _task(finished: Finished, config: PredictConfig, column: str, form: str) -> str | None:
    """Return a digest of all that the output depends on; None where the input cannot be read twice."""
    assert config.input is not None
    if config.input == STANDARD:
        return None
    source = [fact for file in input_files(config.input) for fact in _facts(file)]
    weights = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in _weights(finished)]
    keys = [config.calibrated, config.prefix, config.chunk_rows, config.max_tokens, config.encoding, config.delimiter]
    keys += [config.columns] if config.columns else []
    keys += [config.sheet] if config.sheet else []
    return digest_of(source, finished.trained.identity, finished.trained.run_id, weights, keys, column, form)


def _facts(file: Path) -> list[Any]:
    """Return place, size, time and a digest of both ends of a file."""
    facts = file.stat()
    with file.open("rb") as stream:
        digest = hashlib.sha256(stream.read(SAMPLE))
        stream.seek(max(0, facts.st_size - SAMPLE))
        digest.update(stream.read(SAMPLE))
    return [str(file.absolute()), facts.st_size, facts.st_mtime_ns, digest.hexdigest()]


def _weights(finished: Finished) -> list[Path]:
    return sorted(finished.trained.folder.glob("*.safetensors"))


def _print_sentence(scorer: Scorer, sentence: str, calibrated: bool) -> None:
    said = score_chunk(scorer, Chunk(rows=[], texts=[sentence]), calibrated)[0]
    if scorer.trained.kind is TargetKind.scores:
        OUT.print(f"score {said[0]:.4f}")
        return
    label, *probabilities = said
    thresholds = scorer.trained.thresholds
    columns = ["label", "probability", *([] if thresholds is None else ["threshold"])]
    title = label if thresholds is None else ", ".join(label) or "no label"
    table = Table(*columns, title=escape(title), title_justify="left")
    for number, (name, value) in enumerate(zip(scorer.labels, probabilities, strict=True)):
        table.add_row(Text(name), f"{value:.4f}", *([] if thresholds is None else [f"{thresholds[number]:.4f}"]))
    OUT.print(table)
