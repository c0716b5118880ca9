"""`predict` against `transformers.pipeline("text-classification")` with batching: one fine-tuned model, one machine.

    python benchmarks/predict.py ../shared/data/sst2                       # 100,000 rows; an hour or more on two cores
    python benchmarks/predict.py ../shared/data/sst2 --run outputs/<id>    # a run that is there already
    python benchmarks/predict.py ../shared/data/sst2 --rows 2000 --theirs 500 --chunk 100 --override model=tiny

The rows are sentences of SST-2, from the first again when there are no more. In one process both go through chunks in
turn, spread over all rows: `predict` with reading and writing its files, the pipeline with the merged model, texts in
the run's frame, once in the run's arithmetic and once in float32, which a merged export is loaded in. Then the command
itself, in processes of its own: speed and peak memory on a tenth of the rows and on all, and a kill in the middle,
after which the output must be the same to the byte. Writes predict.json beside this.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
OUT = Console()


def main() -> None:
    """Measure, and write down what came out."""
    import torch

    from sentexp.models.saved import read_trained
    from sentexp.system.device import choose_device, describe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="SST-2: a folder in GLUE's layout")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--theirs", type=int, default=5_000, help="rows that the pipelines read, in chunks spread evenly"
    )
    parser.add_argument("--chunk", type=int, default=1000, help="rows of the chunks that alternate")
    parser.add_argument("--batch", type=int, default=8, help="of the pipelines")
    parser.add_argument("--run", type=Path, help="the folder of a finished run; without it one is trained")
    parser.add_argument("--override", nargs="*", default=[], help="keys of the run that is trained")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or train(given.path, Path(folder), given.override)
        weights = run / json.loads((run / "result.json").read_text())["weights"]
        inputs = {rows: write_rows(given.path, Path(folder), rows) for rows in (given.rows // 10, given.rows)}
        facts: dict[str, Any] = {"machine": describe(choose_device("auto")), "threads": torch.get_num_threads()}
        facts |= {"rows": given.rows, "chunk": given.chunk, "batch": given.batch, "override": given.override}
        facts["side_by_side"] = side_by_side(read_trained(weights), inputs[given.rows], given, Path(folder))
        chunk = min(4096, given.rows // 40)  # so that the fewer rows have chunks to be killed between
        facts["command"] = {str(rows): command(run, file, chunk) for rows, file in inputs.items()}
        facts["killed"] = killed(run, inputs[given.rows // 10], chunk)
    (HERE / "predict.json").write_text(json.dumps(facts, indent=2) + "\n")
    show(facts)


def train(path: Path, folder: Path, overrides: list[str]) -> Path:
    """Return the folder of a short run on SST-2: how right it is does not matter here."""
    from sentexp.config import load_config
    from sentexp.run.train import train as train_run

    words = ["data=sst2", f"data.path={path}", "data.train_subset=1000", "data.validation_subset=100", "baseline=false"]
    words += ["tracking=none", "trainer.progress_bar=false", f"output_dir={folder}/outputs"]
    return train_run(load_config(*words, *overrides)).folder


def write_rows(path: Path, folder: Path, rows: int) -> Path:
    """Write sentences of SST-2 to a CSV, again from the first when there are no more."""
    lines = (path / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts = [line.rpartition("\t")[0] for line in lines]
    file = folder / f"{rows}.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("id", "text"), *((n, texts[n % len(texts)]) for n in range(rows))])
    return file


def side_by_side(trained: Any, file: Path, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the speeds in chunks that all have read, and how far their probabilities are apart."""
    from sentexp.config import Precision
    from sentexp.inference.predict import score_chunk
    from sentexp.inference.readers import open_source
    from sentexp.inference.scorer import Scorer
    from sentexp.inference.writers import FileOutput

    scorer = Scorer(trained)
    theirs = {
        one.name: pipeline_of(scorer, folder / one.name, given.batch, one)
        for one in dict.fromkeys([scorer.precision, Precision.fp32])
    }
    found = {name: Beside() for name in theirs}
    added = ["label", *(f"probability_{label}" for label in trained.labels)]
    every = max(1, given.rows // given.theirs)
    rows, seconds = [], []
    with open_source(str(file)) as source:
        output = FileOutput(folder / "said.csv", "csv", source.columns, added, ",", "benchmark")
        for number, chunk in enumerate(source.chunks("text", given.chunk)):
            if number % every:
                continue
            began = time.perf_counter()
            said = score_chunk(scorer, chunk)
            output.write(chunk, said)
            seconds.append(time.perf_counter() - began)
            rows.append(len(said))
            framed = [trained.prompt.frame((text or "").strip()) for text in chunk.texts]
            whole = [len(tokens) <= scorer.limit for tokens in scorer.tokenizer(framed)["input_ids"]]
            for name, read in theirs.items():
                found[name].read(read, framed, [row if fits else None for row, fits in zip(said, whole, strict=True)])
        output.finish()
        output.close()
    return {
        "precision": scorer.precision.name,
        "rows": sum(rows),
        "rows_per_second": sum(rows) / sum(seconds),
        "pipeline": {name: one.facts(rows, seconds, trained.labels) for name, one in found.items()},
    }


class Beside:
    """The same chunks through a pipeline."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.pairs: list[tuple[list[Any], list[dict[str, Any]]]] = []

    def read(self, pipeline: Any, framed: list[str], said: list[list[Any] | None]) -> None:
        """Read a chunk; `said` is what predict says of it, None where the pipeline cuts a text in another place."""
        began = time.perf_counter()
        found = pipeline(framed)
        self.seconds.append(time.perf_counter() - began)
        self.pairs += [(row, scores) for row, scores in zip(said, found, strict=True) if row is not None]

    def facts(self, rows: list[int], seconds: list[float], labels: list[str]) -> dict[str, Any]:
        """Return speed, and difference to predict, which needed these seconds for chunks of these rows."""
        apart, other = 0.0, 0
        for row, scores in self.pairs:
            by_label = {score["label"]: score["score"] for score in scores}
            apart = max(apart, *(abs(by_label[name] - p) for name, p in zip(labels, row[1:], strict=True)))
            other += max(by_label, key=lambda name: by_label[name]) != row[0]
        return {
            "rows_per_second": sum(rows) / sum(self.seconds),
            "median_ratio_of_chunks": median(b / a for a, b in zip(seconds, self.seconds, strict=True)),
            "largest_difference": apart,
            "other_labels": other,
            "cut_rows": sum(rows) - len(self.pairs),
        }


def pipeline_of(scorer: Any, folder: Path, batch: int, precision: Any) -> Any:
    """Return transformers' pipeline over the same model, its adapter merged, in an arithmetic."""
    import torch
    from transformers import pipeline

    from sentexp.models.loading import DTYPES
    from sentexp.models.saved import find_base, load_trained

    trained = scorer.trained
    model, tokenizer = load_trained(trained, find_base(trained), precision, torch.device("cpu"))
    merged: Any = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = pipeline("text-classification", model=str(folder), device=scorer.device, dtype=DTYPES[precision], top_k=None)
    return lambda texts: made(texts, batch_size=batch, truncation=True, max_length=scorer.limit)


def start(run: Path, file: Path, output: Path, chunk: int) -> subprocess.Popen[bytes]:
    """Start the command."""
    words = ["predict", f"run='{run.absolute()}'", f"input='{file}'", f"output='{output}'", "tracking=none"]
    words.append(f"chunk_rows={chunk}")
    return subprocess.Popen([sys.executable, "-m", "sentexp", *words], stderr=subprocess.DEVNULL)


def command(run: Path, file: Path, chunk: int) -> dict[str, float]:
    """Return time and peak memory of the command, its start included; Linux counts no less than this process holds."""
    began = time.perf_counter()
    process = start(run, file, file.with_suffix(".jsonl"), chunk)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {"seconds": time.perf_counter() - began, "peak_memory_gib": usage.ru_maxrss / 2**20}


def killed(run: Path, file: Path, chunk: int) -> dict[str, Any]:
    """Kill the command when something is written, give it again, and compare with the output of `command`."""
    output = file.with_name("killed.jsonl")
    process = start(run, file, output, chunk)
    state = output.with_name(f"{output.name}.partial") / "state.json"
    while process.poll() is None and not state.is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = json.loads(state.read_text())["rows"] if state.is_file() else None
    assert start(run, file, output, chunk).wait() == 0
    return {"killed_after_rows": rows, "same_bytes": output.read_bytes() == file.with_suffix(".jsonl").read_bytes()}


def show(facts: dict[str, Any]) -> None:
    """Print what was measured."""
    beside, killed = facts["side_by_side"], facts["killed"]
    title = f"the same {beside['rows']:,} rows in turn"
    table = Table("", "rows/s", "predict is", "largest difference", "other labels", title=title, title_justify="left")
    table.add_row(f"predict, {beside['precision']}", f"{beside['rows_per_second']:,.1f}", "", "", "")
    for name, one in beside["pipeline"].items():
        times = f"{one['median_ratio_of_chunks']:.1f} times as fast"
        apart, other = f"{one['largest_difference']:.1e}", f"{one['other_labels']:,}"
        table.add_row(f"pipeline, {name}", f"{one['rows_per_second']:,.1f}", times, apart, other)
    OUT.print(table)
    table = Table("rows", "seconds", "rows/s", "peak memory (GiB)", title="the command", title_justify="left")
    for rows, found in facts["command"].items():
        speed = int(rows) / found["seconds"]
        table.add_row(f"{int(rows):,}", f"{found['seconds']:.1f}", f"{speed:,.1f}", f"{found['peak_memory_gib']:.2f}")
    OUT.print(table)
    OUT.print(f"killed after {killed['killed_after_rows']} rows, then gone on with: same bytes {killed['same_bytes']}")


if __name__ == "__main__":
    main()
