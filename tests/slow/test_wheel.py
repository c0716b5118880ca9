"""The built wheel, installed elsewhere, does the same run."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import warm

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_the_wheel_does_the_same_run_from_another_folder(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sentexp/conf/config.yaml" in names
    assert "hydra_plugins/sentexp.py" in names
    assert "sentexp/compare/report.html.j2" in names
    assert not [name for name in names if name.startswith(("tests/", "src/", "conf/"))]
    assert not [name for name in names if name.startswith("sentexp/conf/") and name.endswith(".py")]

    # The dependencies are those of this environment; sentexp itself comes from the wheel alone.
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    here = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(f"{here}\n")
    python = tmp_path / "env" / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sentexp.config as c; print(c.__file__, c.conf_dir())"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert where.count(str(site)) == 2

    words = ["-m", "sentexp", "model=tiny", "data.train_subset=64", "trainer.progress_bar=false", "tracking=none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    subprocess.run([python, *words], cwd=tmp_path / "a", env=environment, check=True, capture_output=True)
    warm.run(words, tmp_path / "b", environment)
    results = []
    for folder in ("a", "b"):
        (file,) = tmp_path.glob(f"{folder}/outputs/*/result.json")
        metrics = json.loads(file.read_text())["metrics"]
        results.append({name: value for name, value in metrics.items() if name.startswith(("test/", "best/"))})
    assert results[0] == results[1]
    sweep = [python, *words, "--multirun", "peft.r=4,8"]
    subprocess.run(sweep, cwd=tmp_path / "a", env=environment, check=True, capture_output=True)
    assert len(list(tmp_path.glob("a/multirun/*/*/*/outcome.json"))) == 2
