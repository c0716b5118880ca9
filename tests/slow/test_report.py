"""The report, opened in a browser from the disk: its tables are sorted and searched, its pictures are seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sentexp.compare.comparison import Comparison, Configuration, Scored
from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.report import write_report

pytestmark = pytest.mark.slow

HOSTILE = "<script>document.title = 'broken'</script>"
RANKS = (4, 8, 16, 32, 64)


def scored(rank, rate, place, targets):
    """Return a run that is right the more often the higher its rank is, with its settings and costs."""
    chance = np.random.default_rng(place)
    margin = (2 * targets - 1) * (0.4 + rank / 40) + chance.normal(size=len(targets))
    positive = 1 / (1 + np.exp(-margin))
    return Scored(
        run_id=f"{place:032x}",
        name=f"r={rank} lr={rate}",
        seed="1",
        probabilities=np.stack([1 - positive, positive], 1).astype(np.float32),
        file=Path("missing.parquet"),
        settings={"peft.r": str(rank), "optim.lr": rate, "data.name": HOSTILE},
        metrics={"train/seconds": 900.0 + 50 * place, "parameters/trainable": 1000.0 * rank},
        tags={"command": f"python -m sentexp peft.r={rank} optim.lr={rate}"},
    )


@pytest.fixture
def report(tmp_path):
    """Return the file of a report of five ranks and two learning rates, with a hostile review."""
    targets = np.arange(200) % 2
    words = [(rank, rate) for rank in RANKS for rate in ("1e-4", "3e-4")]
    runs = [scored(rank, rate, place, targets) for place, (rank, rate) in enumerate(words)]
    untuned = scored(0, "0", 10, targets)
    comparison = Comparison(
        title="sweep of ranks",
        split="test",
        labels=["negative", "positive"],
        ids=np.array([f"{number:016x}" for number in range(200)]),
        targets=targets,
        slices={},
        configurations=[Configuration(name=run.name, runs=[run]) for run in runs],
        baselines=[Configuration(name="untuned base", runs=[untuned], baseline="untuned")],
    )
    review = pd.DataFrame({"text": [HOSTILE, "fine"], "rows": [2, 10]})
    board, file = leaderboard(comparison, resamples=100), tmp_path / "report.html"
    write_report(board, comparison, file, tables=[("one against two", review)])
    return file


def column(browser, table, head):
    """Return the texts of a column from top to bottom, those of the rows that are shown."""
    heads = [each.text.split("\n")[0].strip() for each in table.find_elements("css selector", "thead th")]
    place = heads.index(head) + 1
    cells = table.find_elements("css selector", f"tbody tr:not([hidden]) td:nth-child({place})")
    return [cell.text for cell in cells]


def test_a_report_is_read_sorted_and_searched(report, browser):
    from selenium.webdriver.common.keys import Keys

    browser.get(report.as_uri())
    assert browser.title == "sweep of ranks"
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []  # nothing was blocked
    table = browser.find_element("id", "table-1")
    heads = {each.text: each for each in table.find_elements("css selector", "thead th")}
    seconds = [f"{900 + 50 * place:,}" for place in range(10)]
    assert column(browser, table, "seconds") != [*seconds, ""]

    heads["seconds"].find_element("tag name", "button").click()
    assert column(browser, table, "seconds") == [*seconds, ""]  # by number, and what is missing last
    assert heads["seconds"].get_attribute("aria-sort") == "ascending"
    heads["seconds"].find_element("tag name", "button").send_keys(Keys.ENTER)
    assert column(browser, table, "seconds") == [*reversed(seconds), ""]
    assert heads["seconds"].get_attribute("aria-sort") == "descending"
    heads["rank"].find_element("tag name", "button").click()
    assert column(browser, table, "rank")[-1] == "baseline"
    assert heads["seconds"].get_attribute("aria-sort") == "none"

    box = browser.find_element("css selector", "input[aria-controls=table-1]")
    box.send_keys("R=16 3e-4")
    assert column(browser, table, "configuration") == ["r=16 lr=3e-4"]
    assert browser.find_element("css selector", "output").text == "1 of 11 rows"
    box.clear()
    box.send_keys(Keys.SPACE)
    assert len(column(browser, table, "configuration")) == 11

    settings = next(each for each in browser.find_elements("tag name", "table") if "optim.lr" in each.text)
    head = next(each for each in settings.find_elements("css selector", "thead th") if each.text == "peft.r")
    head.find_element("tag name", "button").click()
    assert column(browser, settings, "peft.r") == [str(rank) for rank in RANKS for _ in range(2)]
    assert HOSTILE in browser.find_element("id", "pairs").text
    assert browser.title == "sweep of ranks"

    sizes = browser.execute_script("return [...document.images].map(image => [image.complete, image.naturalWidth])")
    assert len(sizes) == len(browser.find_elements("tag name", "figure")) == 6
    assert all(complete and width > 300 for complete, width in sizes)
    assert not browser.execute_script(
        "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
    )
