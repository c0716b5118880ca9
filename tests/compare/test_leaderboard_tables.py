"""The leaderboard for people and for programs: the same numbers everywhere, nothing that a format would misread."""

import io
import json

import pytest
from rich.console import Console

from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.leaderboard_tables import markdown, terminal_tables, write_tables

NAMES = (("r=1 a|b_c", 0.5, 1), ("50% & $x$", 1.5, 2))


@pytest.fixture
def board(simulate):
    return leaderboard(simulate(NAMES, baselines=(("majority class", "majority", 0.0),)), resamples=200)


def test_markdown_keeps_its_columns(board):
    lines = [line for line in markdown(board, "title").splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3
    assert r"r=1 a\|b_c" in "".join(lines)


def test_every_format_has_the_same_value(board, tmp_path):
    write_tables(board, "title", tmp_path)
    facts = json.loads((tmp_path / "leaderboard.json").read_text())
    for row in facts["rows"]:
        interval = f"{row['accuracy']:.4f} [{row['accuracy_low']:.4f}"
        assert interval in (tmp_path / "leaderboard.md").read_text()
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


def test_names_are_whole_in_narrow_terminals(simulate):
    names = ["peft=lora task=causal_lm", "peft=none task=seq_cls", "peft=full task=causal_lm"]
    comparison = simulate([(name, 1.0, 2) for name in names])
    board = leaderboard(comparison, resamples=200, base=names[1])
    for width in (60, 80, 82, 120):
        console = Console(width=width, file=io.StringIO())
        console.print(*terminal_tables(board, "title", width))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert {line[-1] for line in lines if line[0] in "│┃"} <= {"│", "┃"}  # nothing is cut off
        assert all(word in " ".join(lines) for word in " ".join(names).split())
        assert "…" not in "".join(lines)


def test_what_ties_exactly_is_compared_and_the_best_is_not(simulate):
    comparison = simulate((("r=1", 1.0, 1), ("r=2", 1.0, 1)))
    comparison.configurations[1].runs[0].probabilities = comparison.configurations[0].runs[0].probabilities
    board = leaderboard(comparison, resamples=200)
    _, differences = terminal_tables(board, "title", 80)
    assert [str(cell) for cell in differences.columns[1].cells] == ["+0.0000\n[+0.0000, +0.0000]"]
    assert [str(cell) for cell in differences.columns[2].cells] == ["1.0000"]
    assert board.notes[0] == "On these 400 test rows the 2 configurations do not differ significantly in accuracy."


@pytest.mark.parametrize(("confidence", "told"), [(0.95, "95%"), (0.999, "99.9%"), (0.975, "97.5%")])
def test_the_confidence_is_told_with_its_digits(simulate, confidence, told):
    board = leaderboard(simulate(NAMES), resamples=200, confidence=confidence)
    assert f"accuracy {told} interval" in markdown(board, "title")
