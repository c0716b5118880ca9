"""What was trained, loaded again from the folder that `save_trained` wrote, to score texts as in the run."""

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from sentexp.config import (
    Attention,
    CausalLM,
    HeadLoss,
    HeadStart,
    ModelConfig,
    PackageFile,
    PackageModel,
    PeftConfig,
    Precision,
    Quantization,
    RandomWeights,
    TargetKind,
    from_conf,
)
from sentexp.data.prompts import Prompt
from sentexp.errors import UserError, require
from sentexp.models.adapters import without_harmless_warnings
from sentexp.models.architecture import holds, read_config
from sentexp.models.dequantize import unpack
from sentexp.models.loading import Loading, load_classifier, load_language_model, load_tokenizer
from sentexp.models.pretrained import Backbone, locate_backbone
from sentexp.models.structure import head_modules, output_path
from sentexp.models.without_bitsandbytes import without_bitsandbytes
from sentexp.system.hub import is_local

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTS = "sentexp.json"
FOLDERS = ("adapter", "model", "head", "prompt")
"""The names of folders of weights: see `save_trained`."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


@dataclass(kw_only=True, slots=True)
class Trained:
    """A folder of trained weights, and what `sentexp.json` in it says.

    `labels` are in the order of the logits; `prior` is divided out of the probabilities, `temperature` divides logits
    where calibrated probabilities are wanted; `revision` is that of the base `model`. `text` is the column that the
    run's texts were in, or the template that made them, and `strip` says whether surrounding blanks were removed;
    `text_pair` is that of the second texts, where the run reads pairs. `loss` is what a head has learned with, and
    `scale` mean and standard deviation of the training scores, where it has learned scores; `thresholds` are the
    probabilities from which each label holds, where a text has any number of them.
    """

    folder: Path
    identity: str
    run_id: str | None
    answers: bool
    loss: HeadLoss
    scale: tuple[float, float] | None
    thresholds: list[float] | None
    length_normalization: bool
    labels: list[str]
    prompt: Prompt
    max_length: int
    positions: int
    prior: list[float] | None
    temperature: float
    strip: bool
    text: str | None
    text_pair: str | None
    model: ModelConfig
    revision: str
    storage: PeftConfig
    precision: Precision

    @property
    def kind(self) -> TargetKind:
        """What is predicted."""
        return self.loss.kind

    @property
    def whole(self) -> bool:
        """Whether the folder holds a whole model, which needs no base."""
        return self.folder.name == "model" or (self.folder / "config.json").is_file()


def read_trained(folder: Path) -> Trained:
    """Return what a folder of trained weights says of itself.

    Raises:
        UserError: a pickle among the weights, no `sentexp.json`, or one of another version.
    """
    require_no_pickle(folder)
    file = folder / FACTS
    require(file.is_file(), f"{folder} holds no {FACTS}, so it is not a folder of weights that sentexp has saved.")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        storage, answers = facts["storage"], facts["kind"] == "causal_lm"
        return Trained(
            folder=folder,
            answers=answers,
            loss=HeadLoss[HeadLoss.cross_entropy.name if answers else facts["task"].get("loss", "cross_entropy")],
            scale=None if facts.get("scale") is None else (facts["scale"][0], facts["scale"][1]),
            thresholds=facts.get("thresholds"),
            length_normalization=facts["task"].get("length_normalization", False),
            prompt=Prompt.from_dict(facts["prompt"]),
            model=_model(facts["model"]),
            storage=PeftConfig(
                usual_lr=0.0,
                quantization=Quantization[storage["quantization"]],
                double_quant=storage["double_quant"],
                compute_dtype=Precision[storage["compute_dtype"]],
            ),
            precision=Precision[facts["precision"]],
            text_pair=facts.get("text_pair"),
            **{
                key: facts[key]
                for key in (
                    "identity", "run_id", "labels", "max_length", "positions", "prior", "temperature", "strip", "text",
                    "revision",
                )
            },
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be used ({type(error).__name__}: {error}): another version of sentexp wrote it, or it is "
            "damaged; give the command of that run again with sweep.rerun=true."
        ) from None


def require_no_pickle(path: Path) -> None:
    """Refuse a file of weights, or a folder that holds one, which could run code when it is loaded (law 11)."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pickles = [file for file in files if file.suffix.lower() in PICKLES]
    require(
        not pickles,
        f"{', '.join(map(str, pickles[:1]))} is a pickle, which can run any code when it is loaded: only safetensors "
        "are; take it out of the folder, or convert it.",
    )


def find_base(trained: Trained, place: str | None = None) -> Backbone:
    """Return the base model of trained weights, once it is known to be the one they were trained on.

    Args:
        trained: the weights; a whole model is its own base.
        place: where the base is now, if it has moved.

    Raises:
        UserError: the base is no longer there, or is another one.
    """
    if trained.whole:
        return Backbone(folder=trained.folder, revision=trained.revision)
    model = trained.model if place is None else replace(trained.model, path=place, package=None, random=None)
    where = model.path or f"the installed package of model={model.name}"
    instead = "name its place with base=<folder or hub id>"
    if model.path is not None and not is_local(model.path):
        model = replace(model, revision=trained.revision)
    require(
        model.path is None or not is_local(model.path) or Path(model.path).expanduser().exists(),
        f"The base model of run {trained.identity} is no longer at {where}: put it back, or {instead}.",
    )
    try:
        base = locate_backbone(model)
    except UserError as error:
        raise UserError(f"The base model of run {trained.identity} cannot be loaded: {error}") from None
    require(
        base.revision == trained.revision,
        f"The base model at {where} has the revision {base.revision[:12]}, and run {trained.identity} was trained on "
        f"{trained.revision[:12]}: its weights fit that one only; put it back, or {instead}.",
    )
    return base


def load_trained(
    trained: Trained, base: Backbone, precision: Precision, device: torch.device, unpacked: bool = False
) -> tuple[nn.Module, "PreTrainedTokenizerBase"]:
    """Return the model with what was trained in place, ready to score on a device, and its tokenizer.

    Args:
        trained: the weights.
        base: see `find_base`.
        precision: arithmetic, resolved.
        device: where it is to run.
        unpacked: make ordinary layers of quantised ones, below the adapter.

    Raises:
        UserError: weights that are missing, damaged, or do not fit the base.
    """
    tokenizer = load_tokenizer(Backbone(folder=trained.folder, revision=""))
    load = Loading(
        storage=trained.storage,
        attention=Attention(trained.model.attn_implementation),
        precision=precision,
        device=device,
        trains_backbone=trained.whole,
    )
    if trained.whole and not trained.answers:
        require(
            holds(base.folder, output_path(read_config(base))),
            f"{base.folder} holds no classification head, so its answers would be random.",
        )
    model: nn.Module
    if trained.answers:
        model = load_language_model(base, tokenizer, load)
    else:
        rows = range(len(trained.labels)) if trained.whole else None
        model = load_classifier(base, tokenizer, trained.labels, load, rows, trained.kind)
    if unpacked and trained.storage.quantization is not Quantization.none:
        unpack(model)
    if (trained.folder / "head.safetensors").is_file():
        _put_head(model, trained.folder / "head.safetensors")
    if (trained.folder / "adapter_config.json").is_file():
        model = _with_adapter(model, trained.folder)
    model.requires_grad_(False)
    if trained.storage.quantization is Quantization.none:
        model.to(device)
    return model.train(False), tokenizer


def scoring_task(trained: Trained) -> CausalLM:
    """Return as much of the task as scoring label words needs."""
    return from_conf(CausalLM, length_normalization=trained.length_normalization)


def _model(facts: dict[str, Any]) -> ModelConfig:
    package, random = facts.pop("package"), facts.pop("random")
    attention = Attention[facts.pop("attn_implementation")]
    head = HeadStart[facts.pop("head", HeadStart.auto.name)]  # which earlier releases do not say
    return from_conf(
        ModelConfig,
        **facts,
        package=None if package is None else _package(package),
        random=None if random is None else RandomWeights(**random),
        attn_implementation=attention,
        head=head,
    )


def _package(facts: dict[str, Any]) -> PackageModel:
    """Return a file in a package; earlier releases do not say what is beside it, nor of pieces."""
    pieces = {name: PackageFile(**piece) for name, piece in facts.get("pieces", {}).items()}
    return PackageModel(**{"beside": {}} | facts | {"pieces": pieces})


def _put_head(model: nn.Module, file: Path) -> None:
    state = load_file(file)
    try:
        for path, module in head_modules(model).items():
            start = f"{path}."
            module.load_state_dict(
                {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
            )
    except RuntimeError as error:
        raise UserError(f"{file} does not fit the base model: {str(error).splitlines()[-1].strip()}") from None


@without_bitsandbytes()
def _with_adapter(model: "PreTrainedModel | nn.Module", folder: Path) -> nn.Module:
    from peft import PeftModel

    require(
        (folder / "adapter_model.safetensors").is_file(),
        f"{folder} holds no adapter_model.safetensors: copy the whole folder of the run.",
    )
    with without_harmless_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, folder, use_safetensors=True)  # type: ignore[no-any-return]
        except (RuntimeError, ValueError, UserWarning) as error:
            raise UserError(f"{folder} does not fit the base model: {str(error).splitlines()[-1].strip()}") from None
