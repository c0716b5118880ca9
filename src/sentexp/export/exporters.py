"""What a finished run is written as for other programs, and how each form is read again: by these programs' means.

`peft` is the adapter alone, in PEFT's own form. The others hold the model whole, adapter merged and quantised layers
unpacked: `merged` is a Hugging Face folder, `onnx` a graph, `gguf` a file for llama.cpp. Where a head or label rows
answer, the tokenizer beside them frames texts as the run did; a language model has its prompt in `sentexp.json`.
"""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sentexp.config import ExportFormat, ExportType, HeadLoss, Precision, Quantization, TargetKind, kind_of
from sentexp.data.prompts import pair_separator
from sentexp.data.text_parts import PAIR
from sentexp.errors import require
from sentexp.export.onnx_graph import graph_of
from sentexp.export.prompt_tokenizer import joined_pairs, save_framed
from sentexp.inference.scorer import Scorer
from sentexp.models.architecture import Support, model_type
from sentexp.models.links import link_of, said
from sentexp.models.loading import load_tokenizer
from sentexp.models.merge import CPU, merge
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import FACTS, Trained, read_trained
from sentexp.system.device import choose_device

Reader = Callable[[Sequence[str]], NDArray[Any]]
"""Gives the probabilities of texts, shape (texts, labels)."""
GRAPH, LABELS, THRESHOLDS = "model.onnx", "labels.json", "thresholds.json"
CONVERTER = "convert_hf_to_gguf"
OUTTYPES = {ExportType.float32: "f32", ExportType.bfloat16: "bf16", ExportType.float16: "f16"}
WITHOUT_GGUF = ("gpt2", "gpt_neox", "olmo2", "phi", "smollm3")
"""Decoders that the converter does not write, or whose files transformers does not read again."""
BATCH = 16
"""Rows that a verification reads at one time."""


def formats_of(support: Support) -> list[ExportFormat]:
    """Return what the runs of an architecture can be written as, where their task and their adapter allow it."""
    without = support.encodes or support.architecture in WITHOUT_GGUF
    return [form for form in ExportFormat if not (form is ExportFormat.gguf and without)]


def write(
    form: ExportFormat, trained: Trained, base: Backbone, dtype: ExportType, folder: Path, device: torch.device = CPU
) -> None:
    """Write a finished run into a folder that is there.

    Args:
        form: one of the formats.
        trained: the weights of the run.
        base: see `find_base`.
        dtype: of merged weights.
        folder: to write to.
        device: where an adapter is merged into a Hugging Face folder.

    Raises:
        UserError: this run cannot be written so, and why.
    """
    match form:
        case ExportFormat.peft:
            _write_adapter(trained, folder)
        case ExportFormat.merged:
            _write_merged(trained, base, dtype, folder, device)
        case ExportFormat.onnx:
            _write_onnx(trained, base, folder)
        case ExportFormat.gguf:
            _write_gguf(trained, base, dtype, folder)


def as_given(form: ExportFormat, trained: Trained, texts: Sequence[str]) -> list[str]:
    """Return texts as an export takes them: see `joined_pairs`."""
    if form in (ExportFormat.peft, ExportFormat.gguf) or (form is ExportFormat.merged and trained.answers):
        return list(texts)  # which are read by their prompt
    return joined_pairs(texts, trained.prompt, load_tokenizer(Backbone(folder=trained.folder, revision="")))


def read(form: ExportFormat, folder: Path, base: str | None, accelerator: str = "cpu") -> Reader:
    """Return what reads texts with an export, in float32.

    Args:
        form: of the export.
        folder: of the export.
        base: where the base model is now, if it has moved: of an adapter alone.
        accelerator: cpu or gpu; ONNX and llama.cpp's files are read on the CPU.
    """
    match form:
        case ExportFormat.peft:
            return Scorer(read_trained(folder), base, accelerator, precision=Precision.fp32).probabilities
        case ExportFormat.merged:
            is_answering = (folder / FACTS).is_file()
            return _scorer(folder, accelerator) if is_answering else _read_pipeline(folder, accelerator)
        case ExportFormat.onnx:
            return _read_onnx(folder)
        case ExportFormat.gguf:
            return _read_gguf(folder)


def _write_adapter(trained: Trained, folder: Path) -> None:
    require(
        (trained.folder / "adapter_config.json").is_file(),
        f"format=peft is an adapter alone, and run {trained.identity} has none ({trained.folder.name}/): use "
        "format=merged.",
    )
    for file in sorted(trained.folder.iterdir()):
        if file.name != "README.md":  # PEFT's own, to be filled in by hand
            shutil.copy2(file, folder / file.name)


def _write_merged(trained: Trained, base: Backbone, dtype: ExportType, folder: Path, device: torch.device) -> None:
    model: Any = merge(trained, base, device).to(getattr(torch, dtype.name))
    if trained.loss is not HeadLoss.cross_entropy:
        model.config.sentexp_loss = trained.loss.name  # its outputs are not the logits of classes
        model.config.sentexp_scale = trained.scale
        model.config.sentexp_thresholds = trained.thresholds
    _save_tokenizer(trained, folder, getattr(model.config, "type_vocab_size", 0) > 1)
    model.save_pretrained(folder)


def _write_onnx(trained: Trained, base: Backbone, folder: Path) -> None:
    _require_installed("onnx", ("onnx", "onnxscript", "onnxruntime"))
    tokenizer = load_tokenizer(Backbone(folder=trained.folder, revision=""))
    graph = graph_of(merge(trained, base), trained, pair_separator(trained.prompt, tokenizer))
    save_framed(tokenizer, trained.prompt, trained.max_length, trained.positions, trained.strip, folder)
    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens", max=trained.positions)
    shape = {0: rows, 1: tokens}
    with warnings.catch_warnings():
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which has no part in this
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # torch 2.13 calls its own old name
        warnings.filterwarnings("ignore", message="# The axis name: .* will not be used")  # both inputs have these axes
        torch.onnx.export(
            graph,
            example,
            folder / GRAPH,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(shape, shape),
            dynamo=True,
            verbose=False,
        )
    _write_labels(trained, folder)


def _write_gguf(trained: Trained, base: Backbone, dtype: ExportType, folder: Path) -> None:
    require(
        trained.answers,
        f"format=gguf is for language models, and run {trained.identity} has a classification head, which llama.cpp "
        "does not support: use format=onnx, or train with task=causal_lm.",
    )
    architecture = model_type(base)
    require(
        architecture not in WITHOUT_GGUF,
        f"format=gguf does not take the architecture of run {trained.identity}, {architecture}, which cannot be "
        "converted and read again: use format=merged, and another converter.",
    )
    _require_installed("gguf", (CONVERTER,))
    with tempfile.TemporaryDirectory(dir=folder) as plain:
        model: Any = merge(trained, base)
        model.save_pretrained(plain)
        load_tokenizer(base).save_pretrained(plain)
        file = folder / f"{trained.identity}.gguf"
        call = [sys.executable, "-m", CONVERTER, "--outtype", OUTTYPES[dtype], "--outfile", str(file), plain]
        done = subprocess.run(call, capture_output=True, text=True, check=False)  # noqa: S603 (a fixed command)
    require(
        done.returncode == 0 and file.is_file(),
        f"format=gguf: the converter refuses this model ({_last_line(done.stderr)}): use format=merged, and another "
        "converter.",
    )
    _save_tokenizer(trained, folder)


def _save_tokenizer(trained: Trained, folder: Path, segments: bool = False) -> None:
    """Write the tokenizer: framing where a head answers, and else as it is, with the prompt beside it."""
    tokenizer = load_tokenizer(Backbone(folder=trained.folder, revision=""))
    if not trained.answers:
        save_framed(tokenizer, trained.prompt, trained.max_length, trained.positions, trained.strip, folder, segments)
        return
    tokenizer.save_pretrained(folder)
    facts = json.loads((trained.folder / FACTS).read_text(encoding="utf-8"))
    facts["storage"]["quantization"] = Quantization.none.name
    (folder / FACTS).write_text(json.dumps(facts | {"base_model": None}, indent=2) + "\n", encoding="utf-8")


def _write_labels(trained: Trained, folder: Path) -> None:
    (folder / LABELS).write_text(json.dumps(trained.labels, ensure_ascii=False) + "\n", encoding="utf-8")
    if trained.thresholds is not None:
        (folder / THRESHOLDS).write_text(json.dumps(trained.thresholds) + "\n", encoding="utf-8")


def _scorer(folder: Path, accelerator: str = "cpu", loaded: tuple[nn.Module, Any] | None = None) -> Reader:
    """Return what reads texts with a language model."""
    trained = replace(read_trained(folder), precision=Precision.fp32)
    return Scorer(trained, None, accelerator, precision=Precision.fp32, loaded=loaded).probabilities


def _read_pipeline(folder: Path, accelerator: str) -> Reader:
    from transformers import pipeline

    device = choose_device(accelerator, "accelerator")
    pipe = pipeline("text-classification", model=str(folder), dtype=torch.float32, device=device, top_k=None)
    labels = [pipe.model.config.id2label[number] for number in range(pipe.model.config.num_labels)]
    config = pipe.model.config
    loss = HeadLoss[getattr(config, "sentexp_loss", HeadLoss.cross_entropy.name)]
    link = link_of(loss, getattr(config, "sentexp_scale", None))

    def probabilities(texts: Sequence[str]) -> NDArray[Any]:
        pairs, cut = _pairs(texts)
        given: list[Any] = list(texts)
        if pairs is not None:
            given = [{"text": text, "text_pair": other} for text, other in zip(*pairs, strict=True)]
        scores = [
            {one["label"]: one["score"] for one in row} for row in pipe(given, truncation=cut, function_to_apply="none")
        ]
        outputs = torch.tensor([[row[label] for label in labels] for row in scores])
        return said(loss.kind, link(outputs))

    return probabilities


def _read_onnx(folder: Path) -> Reader:
    import onnxruntime

    tokenizer: Any = load_tokenizer(Backbone(folder=folder, revision=""))
    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))

    def logits(ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return found

    kind = kind_of(labels, True if (folder / THRESHOLDS).is_file() else None)
    return _padded(tokenizer, logits, kind)


def _read_gguf(folder: Path) -> Reader:
    from transformers import AutoModelForCausalLM, GgufConfig

    file = next(folder.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return _scorer(folder, loaded=(model, load_tokenizer(Backbone(folder=folder, revision=""))))


def _padded(tokenizer: Any, logits: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]], kind: TargetKind) -> Reader:
    """Return what reads texts in padded batches."""

    def probabilities(texts: Sequence[str]) -> NDArray[Any]:
        batches = []
        for start in range(0, len(texts), BATCH):
            pairs, cut = _pairs(texts[start : start + BATCH])
            given = [list(texts[start : start + BATCH])] if pairs is None else pairs
            rows = tokenizer(*given, padding=True, truncation=cut, return_tensors="np")
            batches.append(logits(rows["input_ids"].astype(np.int64), rows["attention_mask"].astype(np.int64)))
        return said(kind, torch.tensor(np.concatenate(batches)))

    return probabilities


def _pairs(texts: Sequence[str]) -> tuple[tuple[list[str], list[str]] | None, bool | str]:
    """Return the first texts of pairs and the second ones, None for single texts; and how these are cut."""
    if not any(PAIR in text for text in texts):
        return None, True
    parts = [text.partition(PAIR) for text in texts]
    return ([first for first, _, _ in parts], [second for _, _, second in parts]), "only_first"


def _require_installed(form: str, packages: Sequence[str]) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    require(not missing, f"format={form} needs {', '.join(missing)}: pip install 'sentexp[export]'.")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1][:300]
