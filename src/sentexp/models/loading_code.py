"""The lines of plain PEFT or transformers that give the probabilities of a folder of weights; cards hold them."""

from sentexp.config import HeadLoss, HeadStart
from sentexp.data.prompts import pair_separator
from sentexp.data.text_parts import PAIR
from sentexp.errors import UserError
from sentexp.models.architecture import read_config
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import Trained, find_base

EXAMPLE, EXAMPLE_PAIR = "a warm and funny film", "the cast"


ANSWERS = {
    HeadLoss.cross_entropy: ["probabilities = model(**rows).logits.softmax(-1)[0]"],
    HeadLoss.multi_label: ["probabilities = model(**rows).logits.sigmoid()[0]"],
    HeadLoss.ordinal: [
        "z = model(**rows).logits[0]",
        "above = (z[0] + len(z) / 2 * torch.tensor(2).log() - torch.nn.functional.softplus(z[1:]).cumsum(0)).sigmoid()",
        "probabilities = -torch.cat([torch.ones(1), above, torch.zeros(1)]).diff()",
    ],
}
"""The lines from the outputs of a head to probabilities; see `sentexp.models.links`."""


def loading_code(trained: Trained, base: str) -> str:
    """Return at most ten lines, to be run in the folder, after which `probabilities` are those of the example.

    Args:
        trained: the folder.
        base: hub id or folder of the base model, for a head alone or nothing trained.
    """
    adapted = (trained.folder / "adapter_config.json").is_file()
    task = "CausalLM" if trained.answers else "SequenceClassification"
    kind = f"AutoPeftModelFor{task}" if adapted else f"AutoModelFor{task}"
    place = "." if adapted or trained.whole else base
    begin = [f"from {'peft' if adapted else 'transformers'} import {kind}", "from transformers import AutoTokenizer"]
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained(".")'
    lines = _answering(trained, kind, place) if trained.answers else _classifying(trained, kind, place)
    if (trained.folder / "head.safetensors").is_file():
        begin.append("from safetensors.torch import load_file")
        lines.insert(1, 'model.load_state_dict(load_file("head.safetensors"), strict=False)')
    return "\n".join(["import torch", *begin, tokenizer, *lines])


def _answers(trained: Trained) -> list[str]:
    """Return the lines from the outputs of a head to probabilities, or to a score."""
    if trained.scale is not None:
        mean, std = trained.scale
        return [f"score = {mean!r} + {std!r} * model(**rows).logits[0, 0]"]
    held = [] if trained.thresholds is None else [f"labels = probabilities >= torch.tensor({trained.thresholds})"]
    return [*ANSWERS[trained.loss], *held]


def _example(trained: Trained) -> str:
    return EXAMPLE if trained.text_pair is None else f"{EXAMPLE}{PAIR}{EXAMPLE_PAIR}"


def _rows(trained: Trained) -> str:
    """Return what the tokenizer is called with: a text in its frame, or the two of a pair where it divides them."""
    framed = trained.prompt.frame(_example(trained))
    if trained.text_pair is None:
        return f"[{framed!r}]"
    tokenizer = load_tokenizer(Backbone(folder=trained.folder, revision=""))
    if pair_separator(trained.prompt, tokenizer) is None:
        return f"[{framed!r}]"
    segments = ", return_token_type_ids=True" if _knows_segments(trained) else ""
    return f"[{trained.prompt.head + EXAMPLE!r}], [{EXAMPLE_PAIR + trained.prompt.tail!r}]{segments}"


def _knows_segments(trained: Trained) -> bool:
    """Tell whether the model is to be given the segments of a pair; where its base is gone, its tokenizer decides."""
    try:
        return int(getattr(read_config(find_base(trained)), "type_vocab_size", 0)) > 1
    except UserError:
        return False


def _classifying(trained: Trained, kind: str, place: str) -> list[str]:
    options = f"num_labels={len(trained.labels)}, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32"
    if trained.model.head is HeadStart.new:  # the base has a head for other labels
        options += ", ignore_mismatched_sizes=True"
    return [
        f"model = {kind}.from_pretrained({place!r}, {options}).train(False)",
        f"rows = tokenizer({_rows(trained)}, padding=True, return_tensors='pt')",
        *_answers(trained),
    ]


def _answering(trained: Trained, kind: str, place: str) -> list[str]:
    prompt = trained.prompt
    framed = prompt.frame(_example(trained)) + prompt.example_answer
    kept = f"[:-{prompt.answer_token_count}]"
    total = "mean" if trained.length_normalization else "sum"
    prior = "" if trained.prior is None else f" - torch.tensor({trained.prior}).log()"
    return [
        f"model = {kind}.from_pretrained({place!r}, dtype=torch.float32).train(False)",
        f"prompt = tokenizer({framed!r}, add_special_tokens={prompt.special_tokens})['input_ids']{kept}",
        f"answers = {prompt.answers}",
        "logits = [model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] for answer in answers]",
        f"scores = [row.log_softmax(-1)[range(len(answer)), answer].{total}() for row, answer in zip(logits, answers)]",
        f"probabilities = (torch.stack(scores){prior}).softmax(0)",
    ]
