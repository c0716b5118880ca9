"""`python -m sentexp export`: a finished run for other programs, checked on the spot and with its model card."""

import shutil
import tempfile
from pathlib import Path

import torch

from sentexp.config import AUTO, ExportConfig, ExportFormat, Precision
from sentexp.errors import UserError, require
from sentexp.export.exporters import as_given, write
from sentexp.export.model_card import is_export, write_card
from sentexp.export.verify import expected, tolerance_of, verify_export
from sentexp.inference.run_lookup import chosen_run
from sentexp.inference.scorer import Scorer
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import find_base
from sentexp.system.console import hint, say
from sentexp.system.device import choose_device
from sentexp.system.memory import release_memory, total_memory

EXPORTS = "exports"


def export(config: ExportConfig) -> Path:
    """Write a run in a format, read it again in a fresh process, and return its folder, which is whole or absent.

    Raises:
        UserError: there is no such run, it cannot be written so, or the export predicts something else than the run.
    """
    assert config.format is not None
    finished = chosen_run(config)
    form, trained = config.format.name, finished.trained
    folder = Path(config.output or Path(EXPORTS) / f"{trained.identity}-{form}").expanduser()
    require(
        config.overwrite or not folder.exists(),
        f"output={folder} is there already: name another folder, or replace it with overwrite=true.",
    )
    require(not folder.is_file(), f"output={folder} is a file: name a folder.")
    require(
        not folder.exists() or not any(folder.iterdir()) or is_export(folder),
        f"output={folder} is not an export but a folder of other files, which is never replaced: name another folder.",
    )
    say(f"run {finished.name}, as {form}")
    base = find_base(trained, config.base)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        device = _device(config.accelerator, base)
        hint("Writing it")
        write(config.format, trained, base, config.dtype, unfinished, device)
        place = "gpu" if device.type == "cuda" else "cpu"
        texts, wanted = expected(Scorer(trained, config.base, place, precision=Precision.fp32))
        texts = as_given(config.format, trained, texts)
        release_memory()
        arguments = [form, str(unfinished), place, *([config.base] if config.base else [])]
        try:
            verification = verify_export(wanted, arguments, texts, tolerance_of(trained, config.dtype))
        except UserError as error:
            raise UserError(f"The export is removed, as it failed its check: {error}") from None
        numbers = "" if config.format is ExportFormat.peft else f" ({config.dtype.name})"
        write_card(finished, form, verification, unfinished, numbers)
        unfinished.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    say(f"{folder}, {size:,.1f} MiB: {verification}")
    return folder


COPIES = 4
"""How often a GPU must hold the files of a model: float32 is twice bfloat16, and it is there twice at one time."""


def _device(accelerator: str, base: Backbone) -> torch.device:
    """Return where a model is merged and checked: on a GPU if that is large enough, or asked for."""
    device = choose_device(accelerator, "accelerator")
    size = sum(file.stat().st_size for file in base.folder.glob("*.safetensors"))
    if accelerator == AUTO and device.type == "cuda" and COPIES * size > total_memory(device):
        return torch.device("cpu")
    return device
