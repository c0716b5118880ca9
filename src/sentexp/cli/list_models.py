"""`python -m sentexp models`: every option of `model=`, with its size, its licence and the memory that it takes.

A second table says what is computed how for each architecture.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from sentexp.config import Config, conf_dir
from sentexp.config.origin import is_own
from sentexp.errors import UserError
from sentexp.system.console import OUT, say

MILLIONS = {"million": 1, "billion": 1000}
HEADER = re.compile(
    r"# [^:]+: (?P<kind>encoder|decoder|classifier), (?P<size>[\d.]+) (?P<unit>million|billion) parameters, "
    r"(?P<licence>.+?)(?P<gated>, gated: [^.]+)?\.(?= |\n)"
)
"""The first line of a file in `conf/model/`."""
BYTES = {"lora": 2.0, "qlora": 0.6, "full": 16.0}
"""Of a parameter: 16 bits; 4 bits, their scales, and embeddings in 16; float32 with its gradient and AdamW's state."""
GIB = 2**30


@dataclass(kw_only=True, slots=True)
class Listed:
    """An option of `model=`: its kind, millions of parameters, licence, and whether that has to be accepted."""

    name: str
    kind: str
    size: float
    licence: str
    gated: bool

    def gib(self, peft: str) -> float:
        """Return the GiB of weights and what the optimizer keeps, without the activations of a batch."""
        return self.size * 1e6 * BYTES[peft] / GIB


def read_option(file: Path) -> Listed:
    """Return what the first line of an option's file says.

    Raises:
        UserError: another form.
    """
    match = HEADER.match(file.read_text(encoding="utf-8"))
    if match is None:
        raise UserError(
            f"{file} must begin as `# <title>: encoder, 110 million parameters, Apache-2.0.`, with decoder or "
            "classifier, and `, gated: ...` where its licence has to be accepted."
        )
    return Listed(
        name=file.stem,
        kind=match["kind"],
        size=float(match["size"]) * MILLIONS[match["unit"]],
        licence=match["licence"],
        gated=match["gated"] is not None,
    )


def models(config: Config) -> None:
    """Print the options of `model=`, the smallest first, the chosen one marked; then the architectures.

    Raises:
        UserError: a file whose first line has another form.
    """
    listed = sorted(map(read_option, (conf_dir() / "model").glob("*.yaml")), key=lambda one: one.size)
    names = [Column(name, no_wrap=True) for name in ("model=", "kind")]
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("size", *BYTES)]
    table = Table(*names, *numbers, "licence", box=None)  # without lines it fits 80 columns
    chosen = config.model.name if is_own("model", config.model) else None
    for one in listed:
        size = f"{one.size:,.3g} M" if one.size < MILLIONS["billion"] else f"{one.size / MILLIONS['billion']:.2g} B"
        memory = [f"{one.gib(peft):.2f}" if one.gib(peft) < 1 else f"{one.gib(peft):.0f}" for peft in BYTES]
        name = f"{one.name}*" if one.name == chosen else one.name
        licence = f"{one.licence} (gated)" if one.gated else one.licence
        table.add_row(*(Text(cell) for cell in (name, one.kind, size, *memory, licence)))
    OUT.print(table)
    say(
        f"* is chosen; size is the number of parameters. {', '.join(BYTES)}: GiB of weights and optimizer with this "
        "peft, without a batch: python -m sentexp plan model=<name> says how much in all. gated: the licence must be "
        "accepted."
    )
    head, *rows = architectures()
    table = Table(*(Column(name, no_wrap=True) for name in head), box=None)
    for row in rows:
        table.add_row(*row)
    OUT.print(table)


def architectures() -> list[list[str]]:
    """Return what can be done with each architecture: the names of columns, and a row of cells for each."""
    from sentexp.config import ExportFormat
    from sentexp.export.exporters import formats_of
    from sentexp.models.architecture import supported

    rows = [["architecture", "kind", "padding-free", "fast layers", "fused", "QLoRA", "ONNX", "GGUF"]]
    for one in supported():
        written = [form in formats_of(one) for form in (ExportFormat.onnx, ExportFormat.gguf)]
        answers = (one.packs, one.own_layers, one.fuses, one.quantizes, *written)
        said = ["yes" if answer else "" for answer in answers]
        rows.append([one.architecture, "encoder" if one.encodes else "decoder", *said])
    return rows
