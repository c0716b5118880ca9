"""Reading, auditing and tokenising a CSV of short rows: sentexp against `datasets.load_dataset("csv")` and `map`.

    python benchmarks/data.py                      # one million rows, three repetitions of each, alternating
    python benchmarks/data.py --rows 100000        # quicker

Each repetition is a process of its own with empty caches, so that its peak memory is its own. sentexp carves the splits
and audits every row as well, as before a run; `datasets` reads and tokenises only. The search for near-duplicates,
which `python -m sentexp audit` adds, is timed by itself. The rows are words drawn
from the embedded film reviews, in lengths like SST-2's; one in a hundred repeats another. Writes data.json beside this.
"""

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def write_rows(file: Path, rows: int) -> None:
    """Write a CSV of short texts with two labels."""
    from sentexp.config import load_config
    from sentexp.data.splits import load_examples

    rng = random.Random(0)
    reviews = load_examples(load_config("data=rotten_tomatoes").data, whole=True).train.column("text").to_pylist()
    words = [word for review in reviews for word in review.split() if word.isalpha()]
    texts = [review for review in reviews if "," not in review and '"' not in review]
    with file.open("w") as out:
        out.write("text,label\n")
        for row in range(rows):
            text = " ".join(rng.choices(words, k=max(1, min(50, round(rng.lognormvariate(2.0, 0.8))))))
            out.write(f"{rng.choice(texts) if row % 100 == 0 else text},{row % 2}\n")


def with_sentexp(file: Path) -> dict[str, float]:
    """Return the seconds of each stage."""
    from sentexp.config import load_config
    from sentexp.data.audit import audit
    from sentexp.data.prompts import Prompt
    from sentexp.data.splits import NAMES, load_examples
    from sentexp.data.tokens import tokenize
    from sentexp.models.architecture import max_positions
    from sentexp.models.loading import load_tokenizer
    from sentexp.models.pretrained import locate_backbone

    bare = ["data.max_length=128", "trainer.progress_bar=false"]
    config = load_config("data=csv", f"data.path={file}", *bare)
    backbone = locate_backbone(config.model)
    tokenizer, positions = load_tokenizer(backbone), max_positions(backbone)
    marks = [time.perf_counter()]
    examples = load_examples(config.data)
    marks.append(time.perf_counter())
    length = config.data.max_length
    tokens = {name: tokenize(examples.split(name), tokenizer, Prompt(), length, positions, False) for name in NAMES}
    marks.append(time.perf_counter())
    audit("csv", examples, tokens, near=False)
    marks.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    audit("csv", examples, tokens, near=True)
    marks.append(time.perf_counter())
    read, tokenised, short, full = (after - before for before, after in itertools.pairwise(marks))
    return {"read": read, "tokenise": tokenised, "audit": short, "near": full - short, "run_peak_gib": peak}


def with_datasets(file: Path) -> dict[str, float]:
    """Return the seconds of each stage."""
    import datasets

    from sentexp.config import load_config
    from sentexp.models.loading import load_tokenizer
    from sentexp.models.pretrained import locate_backbone

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(locate_backbone(load_config().model))
    marks = [time.perf_counter()]
    rows = datasets.load_dataset("csv", data_files=str(file), split="train", keep_default_na=False)
    marks.append(time.perf_counter())
    rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=128), batched=True, remove_columns=["text"]
    )
    marks.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    read, tokenised = (after - before for before, after in itertools.pairwise(marks))
    return {"read": read, "tokenise": tokenised, "audit": 0.0, "near": 0.0, "run_peak_gib": peak}


WAYS = {"sentexp": with_sentexp, "datasets": with_datasets}


def measure(way: str, file: Path) -> dict[str, float]:
    """Run one repetition in a process of its own, with empty caches but for the converted backbone."""
    from sentexp.system.package_files import cache_dir

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(cache_dir() / "models")
        environment = {**os.environ, "SENTEXP_CACHE": folder, "HF_DATASETS_CACHE": f"{folder}/datasets"}
        command = [sys.executable, __file__, "--way", way, "--file", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        seconds = WAYS[given.way](given.file)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(seconds | {"peak_gib": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        write_rows(file, given.rows)
        size = file.stat().st_size
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(given.repetitions):
            for way, done in runs.items():
                done.append(measure(way, file))
    medians = {way: {key: statistics.median(run[key] for run in done) for key in done[0]} for way, done in runs.items()}
    table = Table("", "read s", "tokenise s", "audit s", "all s", "rows/s", "peak GiB", "near s", "peak GiB with near")
    for way, median in medians.items():
        total = median["read"] + median["tokenise"] + median["audit"]
        median["rows_per_second"] = given.rows / total
        stages = [f"{median[stage]:.1f}" if median[stage] else "" for stage in ("read", "tokenise", "audit")]
        near = [f"{median['near']:.1f}", f"{median['peak_gib']:.2f}"] if median["near"] else []
        peak = f"{median['run_peak_gib']:.2f}"
        table.add_row(way, *stages, f"{total:.1f}", f"{given.rows / total:,.0f}", peak, *near)
    Console(width=120).print(table)
    import torch

    from sentexp.system.device import describe

    machine = describe(torch.device("cpu"))
    report = {"rows": given.rows, "bytes": size, "machine": machine, "medians": medians, "runs": runs}
    (HERE / "data.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
