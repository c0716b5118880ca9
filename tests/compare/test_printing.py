"""The leaderboard for people and for programs: the same numbers everywhere, nothing that a format would misread."""

import io
import json

import pytest
from rich.console import Console

from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.printing import latex, markdown, terminal_tables, write_tables

NAMES = (("r=1 a|b_c", 0.5, 1), ("50% & $x$", 1.5, 2))


@pytest.fixture
def board(simulate):
    return leaderboard(simulate(NAMES, baselines=(("majority class", "majority", 0.0),)), resamples=200)


def test_markdown_keeps_its_columns(board):
    lines = [line for line in markdown(board, "title").splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3
    assert r"r=1 a\|b_c" in "".join(lines)


def test_latex_escapes_what_are_commands_there(board):
    text = latex(board, "a_b 100 %")
    assert r"50\% \& \$x\$" in text
    assert r"a\_b 100 \%" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert len({line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")}) == 1
    assert body.count(r"\midrule") == 2  # below the heads, and above the baselines


def test_every_format_has_the_same_value(board, tmp_path):
    write_tables(board, "title", tmp_path)
    facts = json.loads((tmp_path / "leaderboard.json").read_text())
    for row in facts["rows"]:
        for ending in ("md", "tex"):
            assert (
                f"{row['accuracy']:.4f} [{row['accuracy_low']:.4f}" in (tmp_path / f"leaderboard.{ending}").read_text()
            )
        assert str(row["accuracy"]) in (tmp_path / "leaderboard.csv").read_text()
    assert facts["rows"][-1]["rank"] is None
    assert facts["rows"][-1]["to_best"] is None


def test_of_many_configurations_the_terminal_has_the_best(simulate):
    many = leaderboard(simulate([(f"r={n}", 0.5 + n / 20, 1) for n in range(24)], rows=60), resamples=100)
    results, differences = terminal_tables(many, "title", 80)
    assert results.title == "title; the best 20, 4 more in the files"
    assert results.row_count == 20
    assert differences.row_count == 19  # to the best, and without a base the best has none
    assert len([line for line in markdown(many, "title").splitlines() if line.startswith("| ")]) == 2 + 24


def test_the_terminal_has_results_and_differences(board):
    results, differences = terminal_tables(board, "title", 80)
    assert [column.header for column in results.columns][:3] == ["rank", "configuration", "accuracy\n95% interval"]
    assert list(map(str, results.columns[1].cells)) == ["50% & $x$\n2 seeds", "r=1 a|b_c", "majority class"]
    assert results.row_count == 3
    assert [column.header for column in differences.columns].count("p\n(Holm)") == 2
    assert str(next(iter(differences.columns[1].cells))) == ""  # the best is not compared with itself


def test_the_terminal_leaves_the_last_costs_out_where_it_is_narrow(simulate):
    comparison = simulate((("r=1", 0.5, 3), ("r=2", 1.5, 3)))
    for one in comparison.configurations:
        for run in one.runs:
            run.metrics |= {"test/irregular_outputs": 1234.0, "parameters/trainable": 123_450_000.0}
    board = leaderboard(comparison, resamples=200)
    shown = {}
    for width in (80, 120):
        console = Console(width=width, file=io.StringIO())
        console.print(terminal_tables(board, "title", width)[0])
        shown[width] = console.file.getvalue()
        assert max(map(len, shown[width].splitlines())) <= width
        assert "outputs" in shown[width]
        assert "1,234" in shown[width]
    assert "trained" not in shown[80]
    assert "123.45 M" in shown[120]
