"""A learning curve of `task=causal_lm` on SST-2: the embedded model after 100, 1,000 and 5,000 rows, beside the base.

    python benchmarks/learning_curve.py ../shared/data/sst2          # about half an hour on two cores
    python benchmarks/learning_curve.py nyu-mll/glue --rows 100 1000 10000 --override data.subset=sst2 model=llama2_7b

One epoch each over nested subsets, tested on the same 872 sentences; the untuned base is measured once. Writes
learning_curve.json beside this, and docs/images/learning_curve.png.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
METRICS = ("accuracy", "auroc_macro")


def main() -> None:
    """Train, and write down what came out."""
    from sentexp.config import load_config
    from sentexp.run.train import train
    from sentexp.system.device import choose_device, describe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="SST-2: a folder in GLUE's layout, or a hub id")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--override", nargs="*", default=[], help="any key of the configuration")
    given = parser.parse_args()

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in given.rows:
            store = [f"tracking.uri=sqlite:///{folder}/mlflow.db", f"output_dir={folder}/outputs"]
            short = ["data.validation_subset=200", "trainer.progress_bar=false"]
            result = train(
                load_config(
                    "task=causal_lm", "data=sst2", f"data.path={given.path}", *short, *store,
                    f"data.train_subset={rows}", *given.override,
                )
            )  # fmt: skip
            baselines = {name: baseline.metrics for name, baseline in result.baselines.items()}
            found[rows] = {"tuned": result.metrics, **baselines}

    curves = {m: {n: [(r, found[r][n][f"test/{m}"]) for r in found] for n in ("tuned", "tfidf")} for m in METRICS}
    levels = {m: {"untuned": found[given.rows[0]]["untuned"][f"test/{m}"]} for m in METRICS}
    draw_rows_curve(curves, levels, HERE.parent / "docs" / "images" / "learning_curve.png")
    facts = {"machine": describe(choose_device("auto")), "override": given.override, "results": found}
    (HERE / "learning_curve.json").write_text(json.dumps(facts, indent=2) + "\n")

    table = Table("rows", "tuned", "untuned", "TF-IDF", "off-label", "irregular", title="accuracy / AUC")
    for rows, parts in found.items():
        scores = [" / ".join(f"{parts[n][f'test/{m}']:.4f}" for m in METRICS) for n in ("tuned", "untuned", "tfidf")]
        tuned = parts["tuned"]
        answers = f"{tuned['test/off_label_mass']:.4f}", f"{tuned['test/irregular_outputs']:.0f}"
        table.add_row(f"{rows:,}", *scores, *answers)
    Console().print(table)


def draw_rows_curve(
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    levels: Mapping[str, Mapping[str, float]],
    file: Path,
) -> None:
    """Draw metrics over the number of training rows.

    Args:
        curves: by metric and name, (training rows, value) pairs.
        levels: by metric and name, a value that does not depend on the rows, such as the untuned base's.
        file: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(curves), 3.5), layout="constrained")
    styles = (("black", "-", "o"), ("dimgrey", "--", "s"), ("darkgrey", ":", "^"))
    for axes, metric in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for (name, points), (color, style, marker) in zip(curves[metric].items(), styles, strict=False):
            rows, values = zip(*points, strict=True)
            axes.plot(rows, values, style, color=color, marker=marker, label=name, linewidth=1)
        for (name, level), style in zip(levels.get(metric, {}).items(), ("--", ":", "-."), strict=False):
            axes.axhline(level, color="black", linestyle=style, linewidth=0.8, label=name)
        axes.set(xscale="log", xlabel="training rows", title=metric)
        axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
