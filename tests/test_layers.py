"""Imports point down only, heavy libraries are imported where they are used, and nothing unsafe is called."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sentexp.cli.commands import COMMANDS

SOURCE = Path(__file__).parents[1] / "src" / "sentexp"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = (
    ("errors",),
    ("config",),
    ("system", "distributed", "plots"),
    ("data", "tracking"),
    ("models", "metrics", "compare"),
    ("training",),
    ("run",),
    ("inference", "plan"),
    ("export", "quick"),
    ("sweeps",),
    ("search", "serving"),
    ("cli",),
    ("__main__",),
)
"""The packages, from the lowest floor to the highest. A package imports from floors below its own."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LATE = (
    "mlflow",
    "datasets",
    "ray",
    "optuna",
    "bitsandbytes",
    "matplotlib",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "rensa",
    "ftfy",
)


def imports(tree):
    """Yield (module, is at module level) for every import, those for type checkers left out."""
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = SOURCE.parent / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module or "", id(node) in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_down_and_heavy_libraries_wait(file):
    for module, top in imports(ast.parse(file.read_text())):
        parts = module.split(".")
        if parts[0] == "sentexp" and len(parts) > 1:
            own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
            assert own == parts[1] or FLOOR[parts[1]] < FLOOR[own], module
        assert not (top and parts[0] in LATE), f"{module} is imported at module level"


def test_at_the_root_there_are_packages():
    assert {file.name for file in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    assert {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()} < set(FLOOR)


def test_no_module_imports_itself_by_way_of_others():
    names = {".".join(("sentexp", *file.relative_to(SOURCE).with_suffix("").parts)): file for file in FILES}
    below = {
        name.removesuffix(".__init__"): [module for module, _ in imports(ast.parse(file.read_text()))]
        for name, file in names.items()
    }
    list(graphlib.TopologicalSorter(below).static_order())


LIGHT = (
    "__main__",
    "errors",
    "cli/main",
    "cli/commands",
    "cli/help",
    "config/__init__",
    "config/explain",
    "distributed/group",
    "distributed/launch",
    "distributed/processes",
    "run/early_look",
    "system/hub",
)


@pytest.mark.parametrize("name", LIGHT)
def test_the_command_line_starts_without_torch(name):
    heavy = [module for module, top in imports(ast.parse((SOURCE / f"{name}.py").read_text())) if top]
    assert not {"torch", "transformers", "lightning"} & {module.split(".")[0] for module in heavy}


IMPORTS = """
import importlib, json, socket, sys
def refuse(*_): raise SystemExit("an import opened a connection")
socket.socket.connect = refuse
loaded = {}
for part, modules in json.load(sys.stdin).items():
    for module in modules: importlib.import_module(module)
    loaded[part] = [n for n in sys.modules if "." not in n or n.startswith("sentexp.") or n == "torch._dynamo"]
print(json.dumps(loaded))
"""


HEAVY = {"torch", "transformers", "peft", "lightning", "torchmetrics", "sklearn", "torch._dynamo", *LATE}
MEASURING = {"torch", "transformers", "torchmetrics", "matplotlib", "scipy", "torch._dynamo"}
"""What torchmetrics brings along."""
MAY_IMPORT = {
    "look": (("runs", "models", "ui", "compare"), set()),
    "use": (("predict", "serve", "export", "register", "prepare", "push"), {"torch"}),
    "evaluate": (("evaluate",), MEASURING),
    "audit": (("audit",), MEASURING | {"lightning"}),
}
"""Commands, from the lightest to the heaviest, and what their modules may import of these before they do anything."""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Return what a process has loaded after some imports and then others, by their name, and its home folder."""
    modules = [".".join(("sentexp", *file.relative_to(SOURCE).with_suffix("").parts)) for file in FILES]
    left_out = "__main__", "triton_ops"  # Triton comes with PyTorch for GPUs alone
    everything = [name.removesuffix(".__init__") for name in modules if not name.endswith(left_out)]
    parts = {part: [COMMANDS[name].module for name in names] for part, (names, _) in MAY_IMPORT.items()}
    parts["train"] = ["sentexp.run.train", "sentexp.plan.command", "sentexp.quick.command"]
    home = tmp_path_factory.mktemp("home")
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCE.parent)}
    words = json.dumps(parts | {"everything": everything})
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        input=words, cwd=home, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {part: set(names) for part, names in json.loads(done.stdout).items()}, home


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_commands_import_what_they_need(part, imported):
    assert HEAVY & imported[0][part] <= MAY_IMPORT[part][1]


def test_every_command_is_in_the_list():
    assert {name for names, _ in MAY_IMPORT.values() for name in names} == set(COMMANDS) - {"train", "plan"}


def test_a_comparison_starts_without_torch(imported):
    loaded = imported[0]["look"]
    assert "sentexp.compare.command" in loaded
    assert not {"torch", "transformers", "lightning"} & loaded


def test_a_finished_run_is_used_without_what_trains(imported):
    loaded = imported[0]["use"]
    assert "sentexp.inference.predict" in loaded
    assert not [name for name in loaded if name == "sentexp.training" or name.startswith("sentexp.training.")]


def test_imports_have_no_effects(imported):
    loaded, home = imported
    assert "sentexp.run.train" in loaded["everything"]
    assert not set(LATE[:5]) & loaded["everything"], "imported too early"
    assert [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in str(path)] == []


def test_packages_of_no_concept_do_not_exist():
    assert not [file for file in FILES if file.stem in ("utils", "common", "helpers", "base", "misc")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_nothing_unsafe_is_called(file):
    """Law 11: safetensors only, weights only, no remote code, no pickle."""
    text = file.read_text()
    assert not re.search(
        r"trust_remote_code\s*=\s*True|import pickle|pickle\.load|weights_only\s*=\s*False|\beval\(|\bexec\(", text
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node)


@pytest.mark.slow
def test_the_training_core_runs_on_a_bare_machine(tmp_path):
    """Law 12: torch, transformers, peft, lightning, torchmetrics, hydra and omegaconf are enough to train."""
    code = """
import sys
for name in ("mlflow", "datasets", "ray", "optuna", "bitsandbytes", "pandas", "pyarrow", "sklearn"):
    sys.modules[name] = None
import torch
from pathlib import Path
from sentexp.config import load_config
from sentexp.data.datamodule import DataModule
from sentexp.data.packing import Packer
from sentexp.models.adapters import attach
from sentexp.models.loading import Loading, load_classifier, load_tokenizer
from sentexp.models.pretrained import locate_backbone
from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.config import Attention, Precision
from sentexp.tracking.run_logger import open_run_logger
from sentexp.training.checkpoint import Checkpoints
from sentexp.training.module import ClassifierModule
from sentexp.training.trainer import build_trainer, evaluate, fit
quick = ("trainer.progress_bar=false", "trainer.batch_size=4", "trainer.log_every_n_steps=1")
config = load_config("model=tiny", "tracking=none", *quick)
class Rows:
    lengths = torch.arange(12) % 5 + 2
    labels = torch.arange(12) % 2
    prefix = 0
    def ids(self, rows):
        return [[i % 7 + 1] * (i % 5 + 2) for i in rows]
rows = Rows()
device = torch.device("cpu")
backbone = locate_backbone(config.model)
tokenizer = load_tokenizer(backbone)
load = Loading(storage=config.peft, attention=Attention.auto, precision=Precision.fp32, device=device)
model = load_classifier(backbone, tokenizer, ["a", "b"], load)
model, _ = attach(model, config.peft)
module = ClassifierModule(SequenceClassifier(model), ["a", "b"], config.optim, 0, 1)
checkpoints = Checkpoints(Path("."), "validation/loss", 5)
logger = open_run_logger(config.tracking, "x", None)
trainer = build_trainer(config.trainer, Precision.fp32, device, logger, checkpoints)
packer = Packer() if config.trainer.padding_free else None
data = DataModule({"train": rows, "validation": rows, "test": rows}, tokenizer, config.trainer, 0, packer=packer)
fit(trainer, module, data, checkpoints)
print(evaluate(trainer, module, data, "test")["test/accuracy"])
"""
    environment = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(SOURCE.parent),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.splitlines()[-1]) <= 1
