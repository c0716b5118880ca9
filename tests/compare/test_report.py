"""The report is one file that needs no network, holds everything that was compared, and shows texts as texts."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pandas as pd
import pytest

from sentexp.compare import report, report_tables
from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.leaderboard_tables import write_tables
from sentexp.compare.report import write_report
from sentexp.compare.report_tables import commands, frame_sheet, leaderboard_sheet

HOSTILE = "<script>alert(1)</script>"
QUOTED = "a \"b\" 'c' onload=x"
VOID = ("meta", "input", "img", "br", "link")


class Page(HTMLParser):
    """Reads a page: its tags with their attributes, its texts, the rows of its tables; open tags must be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.tables, self.content = [], [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        """Keep a tag, and begin the table, row or cell that it opens."""
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        """Close what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Keep a text, by the tag that it is in."""
        place = self.open[-1] if self.open else ""
        self.content[place] = self.content.get(place, "") + data
        if place not in ("script", "style"):
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def comparison(simulate):
    """Return a comparison with hostile names, labels, settings, tags and commands."""
    words = [(HOSTILE, 1.2, 2), (QUOTED, 1.0, 2), ("r=8 $x$", 0.8, 2), ("r=16", 0.6, 2)]
    made = simulate(words, baselines=[("untuned base", "untuned", 0.1)])
    made.title = f"sweep {HOSTILE}"
    made.labels = ["negative", HOSTILE]
    for place, one in enumerate(made.configurations):
        for run in one.runs:
            run.settings = {"peft.r": str(2**place), "data.name": "x", "task.template": f"{HOSTILE} {place % 2}"}
            run.metrics["train/seconds"] = 60.0 + place
            run.tags = {"command": f"python -m sentexp 'task.template={HOSTILE}'", "note": "hidden"}
            run.tags |= {"version.torch": "2.12", "machine.cpu": HOSTILE}
    return made


@pytest.fixture
def written(comparison, tmp_path):
    """Return a function that writes a report and returns its text."""

    def write(**parts):
        file = tmp_path / "new" / "report.html"
        write_report(leaderboard(comparison, resamples=200), comparison, file, **parts)
        assert [path.name for path in file.parent.iterdir()] == ["report.html"]
        return file.read_text(encoding="utf-8")

    return write


def test_the_page_holds_every_configuration_and_verdict(written, comparison):
    board = leaderboard(comparison, resamples=200)
    page = Page(written())
    told = "".join(page.texts)
    for one in comparison.everything():
        assert any(row[1].startswith(one.name) for row in page.tables[0][1:])
    for note in board.notes:
        assert note in told
    heads = [tag for tag, _ in page.tags if tag == "h2"]
    assert len(heads) == 6
    order = ["Leaderboard", "Differences", "Pictures", "Settings", "Environment", "Commands"]
    assert re.findall("|".join(order), page.content["h2"]) == order


def test_every_metric_stands_with_its_interval(written, comparison):
    board = leaderboard(comparison, resamples=200)
    heads, first, *rest = Page(written()).tables[0]
    row = board.table.iloc[0]
    for metric in ("accuracy", "loss", "auroc_macro", "f1_macro", "precision_macro", "recall_macro", "ece", "brier"):
        told = f"{row[metric]:.4f}[{row[metric + '_low']:.4f}, {row[metric + '_high']:.4f}]"
        assert first[heads.index(metric.replace("_", " "))] == told
    assert first[heads.index("seconds")] == "60"
    assert rest[-1][0] == "baseline"


def test_of_many_configurations_the_best_are_in_the_tables(written, comparison, monkeypatch, tmp_path):
    monkeypatch.setattr(report_tables, "MOST_ROWS", 3)
    monkeypatch.setattr(report, "MOST_COMMANDS", 1)
    board = leaderboard(comparison, resamples=200)
    page = Page(written())
    results, differences, *_ = page.tables
    assert [row[1] for row in results[1:]] == [*board.table["configuration"][:3], "untuned base"]
    assert [row[0] for row in differences[1:]] == board.table["configuration"][:3].tolist()
    text = "".join(page.texts)
    assert text.count("These are the best 3 of 4; leaderboard.csv and leaderboard.json hold all.") == 2
    assert "These are 1 of 2; MLflow has the others" in text
    assert len(write_tables(board, "title", tmp_path)[1].read_text().splitlines()) == 1 + 5


def test_texts_of_the_data_stay_texts(written):
    tables = [("a against b", pd.DataFrame({HOSTILE: [HOSTILE, QUOTED, "a & <b>"], "rows": [1, 2, 3]}))]
    text = written(tables=tables, slices=pd.DataFrame({"slice": [HOSTILE], "accuracy": [0.5]}))
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    shown = next(table for table in page.tables if table[0][0] == HOSTILE)
    assert [row[0] for row in shown[1:3]] == [HOSTILE, QUOTED]
    labels = [attributes.get("aria-label", "") for _, attributes in page.tags]
    assert "Search the table a against b" in labels


def test_nothing_is_loaded_from_anywhere(written):
    text = written()
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    for part in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.content[part].encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy


def test_every_picture_is_whole_and_described(written):
    text = written()
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    captions = [tag for tag, _ in page.tags if tag == "figcaption"]
    assert len(images) == len(captions) == 6  # all but the learning curve
    assert len({image["alt"] for image in images}) == 6
    for image in images:
        tree = ET.fromstring(base64.b64decode(image["src"].partition(",")[2]))
        assert tree.tag.endswith("svg")
        assert not [part for part in tree.iter() if part.tag.endswith("script")]
    assert len(text) < 2_000_000


def test_settings_that_differ_are_columns_and_the_others_are_folded(written, comparison):
    page = Page(written())
    table = next(table for table in page.tables if table[0][:2] == ["run", "seed"])
    assert table[0] == ["run", "seed", "peft.r", "task.template"]
    assert len(table) == 1 + 8
    assert table[1][1:] == ["1", "1", f"{HOSTILE} 0"]
    assert "1 settings that all runs share" in page.content["summary"]
    assert "all runs agree" in page.content["summary"]
    assert ["data.name", "x"] in [row for table in page.tables for row in table]
    assert ["machine.cpu", HOSTILE] in [row for table in page.tables for row in table]
    assert "hidden" not in "".join(page.texts)


def test_environments_that_differ_are_shown_by_run(written, comparison):
    comparison.configurations[1].runs[0].tags["version.torch"] = "2.13"
    table = next(table for table in Page(written()).tables if "version.torch" in table[0])
    assert table[0] == ["run", "version.torch"]
    assert [row[1] for row in table[1:]] == ["2.12"] * 2 + ["2.13"] + ["2.12"] * 5


def test_the_command_of_every_run_is_there_once(written, comparison):
    page = Page(written())
    assert page.content["code"].count("task.template=") == 1
    ((command, runs), *others) = commands(comparison)
    assert command == f"python -m sentexp 'task.template={HOSTILE}'"
    assert len(runs) == 8
    assert len(others) == 1  # the baseline's


def test_what_is_missing_is_left_out(simulate, tmp_path):
    made = simulate([("alone", 1.0, 1)])
    made.configurations[0].runs[0].metrics = {}
    made.configurations[0].runs[0].settings = {}
    made.configurations[0].runs[0].tags = {}
    write_report(leaderboard(made, resamples=100), made, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert re.findall("[A-Z][a-z]+", page.content["h2"]) == ["Leaderboard", "Pictures"]


def test_cells_are_sorted_by_what_they_are(comparison):
    sheet = leaderboard_sheet(leaderboard(comparison, resamples=100))
    assert [row[0].key for row in sheet.rows][-1] is None  # a baseline has no rank, and comes last
    frame = pd.DataFrame(
        {
            "text": ["10", None],
            "rows": [12345, 1],
            "share": [0.25, float("nan")],
            "p": [1e-7, 0.5],
            "kind": pd.Categorical(["a", "b"]),
            "right": [True, False],
        }
    )
    first, second = frame_sheet("any", frame).rows
    assert [cell.text for cell in first] == ["10", "12,345", "0.2500", "1e-07", "a", "True"]
    assert [cell.key for cell in first] == [None, 12345, 0.25, 1e-7, None, None]
    assert [cell.text for cell in second] == ["", "1", "", "0.5000", "b", "False"]
    assert frame_sheet("any", frame.set_index("text")).heads == ["text", "rows", "share", "p", "kind", "right"]
