"""MLflow's UI, opened in a browser, shows a sweep, its runs below it, the page that compares them, and the report.

With `SWEEP=<folder>`, where `python -m sentexp --multirun peft.r=8,16,32` has left its `mlflow.db`, that sweep is
shown, and `runs.png` and `comparison.png` are written into the folder.
"""

import json
import os
import re
import urllib.parse
from pathlib import Path

import pytest
import warm
from mlflow import MlflowClient

from sentexp.config import TrackingConfig, from_conf
from sentexp.tracking.store import PARENT, open_store
from sentexp.tracking.ui_view import experiment_view

pytestmark = pytest.mark.slow

COLUMNS = ["params.`peft.r`", *(f"metrics.`{name}`" for name in ("best/accuracy", "test/accuracy", "test/auroc_macro"))]
TIDY = {  # what MLflow's UI keeps in the browser: its assistant closed, columns chosen; for the pictures
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    "mlflow.assistant.panelOpen_v1": False,
    'MLflowLocalStorage-1.1-ExperimentPage-["1"]-ReactComponentState': {"selectedColumns": COLUMNS},
}
CELLS = """
const cell = e => [parseInt(e.style.top), parseInt(e.style.left), e.innerText];
const grids = [...document.querySelectorAll('.ReactVirtualized__Grid')];
const found = grids.map(grid => [...grid.firstChild.children].map(cell));
const isLast = grid => grid.scrollTop + grid.clientHeight >= grid.scrollHeight;
grids.forEach(grid => { grid.scrollTop = isLast(grid) ? 0 : grid.scrollTop + 200; });
return found;
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a sweep: one that is there, or a tiny one."""
    if "SWEEP" in os.environ:
        return Path(os.environ["SWEEP"])
    words = ["--multirun", "peft.r=8,16,32", "model=tiny", "data.train_subset=64", "data.test_fraction=0.04"]
    words += ["baseline=false", "tracking.system_metrics=false"]
    tiny = tmp_path_factory.mktemp("sweep")
    assert warm.run(["-m", "sentexp", *words], tiny, {**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    return tiny


@pytest.fixture
def find(browser):
    """Return a function that waits for an element."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.expected_conditions import element_to_be_clickable
    from selenium.webdriver.support.wait import WebDriverWait

    return lambda path: WebDriverWait(browser, 60).until(element_to_be_clickable((By.XPATH, path)))


def row(name):
    return f"//*[@role='row'][.//a[normalize-space()='{name}']]"


def shown_metrics(browser, names):
    """Return the three values of metrics on the comparison page, from left to right; it holds the rows in view only."""
    from selenium.webdriver.support.wait import WebDriverWait

    tops, values = {}, {}

    def look(driver):
        left, right, *_ = [*driver.execute_script(CELLS), [], []]
        tops.update({text: top for top, _, text in left})
        values.update({(top, place): text for top, place, text in right if text})
        found = {name: [float(values[at]) for at in sorted(values) if at[0] == tops.get(name)] for name in names}
        return found if all(len(row) == 3 for row in found.values()) else None

    return WebDriverWait(browser, 60).until(look)


def test_a_sweep_is_seen_its_runs_below_it_and_compared(folder, mlflow_server, browser, find):
    runs = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"])
    (sweep,) = [run for run in runs if "sweep.identity" in run.data.tags]
    children = {run.info.run_id: run for run in runs if run.data.tags.get(PARENT) == sweep.info.run_id}
    names = ["r=8", "r=16", "r=32"]
    address = mlflow_server(folder)
    browser.get(address)
    for key, value in TIDY.items():
        browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, json.dumps(value))

    browser.get(f"{address}/#/experiments/1/runs?workflowType=machine_learning")
    expander = find(f"{row(sweep.info.run_name)}//button")
    assert not [name for name in names if browser.find_elements("xpath", row(name))]
    expander.click()
    boxes = [find(f"{row(name)}//input[contains(@aria-label, 'row selection')]/..") for name in names]
    if "SWEEP" in os.environ:
        browser.save_screenshot(folder / "runs.png")
    for box in boxes:
        box.click()
    find("//button[normalize-space()='Compare']").click()

    find("//*[normalize-space()='Comparing 3 Runs from 1 Experiment']")
    compared = json.loads(re.search(r"runs=(\[.*?\])", urllib.parse.unquote(browser.current_url)).group(1))
    assert set(compared) == set(children)
    find("//tr[th[normalize-space()='peft.r']]/td")
    told = [cell.text for cell in browser.find_elements("xpath", "//tr[th[normalize-space()='peft.r']]/td")]
    assert told == [children[run].data.params["peft.r"] for run in compared]
    metrics = ["best/accuracy", "test/accuracy", "test/auroc_macro"]
    for name, values in shown_metrics(browser, metrics).items():
        assert values == pytest.approx([children[run].data.metrics[name] for run in compared], abs=6e-4), name
    if "SWEEP" in os.environ:
        browser.save_screenshot(folder / "comparison.png")


def test_the_view_of_an_experiment_has_the_columns_of_its_sweep(folder, mlflow_server, browser, find):
    """Without a click: the swept key and the metrics, all of them on a page 1280 pixels wide."""
    browser.set_window_size(1280, 800)
    page = experiment_view(open_store(from_conf(TrackingConfig, uri=f"sqlite:///{folder / 'mlflow.db'}")))
    address = mlflow_server(folder)
    browser.get(address)
    for key in ("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "mlflow.assistant.panelOpen_v1"):
        browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, json.dumps(TIDY[key]))
    browser.get(address + page)
    for name in ("r=8", "r=16", "r=32"):
        find(f"//a[normalize-space()='{name}']")
    headers = browser.find_elements("xpath", "//*[@role='columnheader']")
    shown = [one.text.split("\n")[0] for one in sorted(headers, key=lambda one: one.location["x"]) if one.text]
    columns = list(dict.fromkeys(name for name in shown if name in ("peft.r", "seconds") or "/" in name))
    assert columns == ["peft.r", "best/accuracy", "test/accuracy", "test/auroc_macro", "test/f1_macro", "seconds"]
    assert all(one.location["x"] + one.size["width"] <= 1280 for one in headers if one.text in columns)
    if "SWEEP" in os.environ:
        browser.save_screenshot(folder / "view.png")


def test_the_report_of_a_sweep_is_read_among_its_artifacts(folder, mlflow_server, browser, find):
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (sweep,) = client.search_runs(["1"], "tags.`sweep.identity` != ''")
    address = mlflow_server(folder)
    browser.get(address)
    for key, value in TIDY.items():
        browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, json.dumps(value))
    browser.get(f"{address}/#/experiments/1/runs/{sweep.info.run_id}/artifacts/comparison/report.html")
    browser.switch_to.frame(find("//iframe"))
    assert find("//h1").text == sweep.info.run_name
    table = find("//table")
    assert all(name in table.text for name in ("r=8", "r=16", "r=32"))
    head = table.find_element("xpath", ".//th[contains(., 'accuracy')]")
    head.find_element("tag name", "button").click()
    assert head.get_attribute("aria-sort") in ("ascending", "descending")
