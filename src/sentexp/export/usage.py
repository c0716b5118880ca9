"""How an export is read, for its model card: lines of plain libraries, to be run in its folder."""

import json
from dataclasses import replace
from pathlib import Path

from sentexp.config import HeadLoss
from sentexp.data.prompts import pair_separator
from sentexp.models.loading import load_tokenizer
from sentexp.models.loading_code import EXAMPLE, EXAMPLE_PAIR, loading_code
from sentexp.models.pretrained import Backbone
from sentexp.models.saved import Trained

USAGES = {
    "pipeline": """\
{imports}    from transformers import pipeline

    classify = pipeline("text-classification", model=".", top_k=None)
    {assign}classify([{item}], truncation={cut}{raw})
{then}
The tokenizer frames a text as in training; `truncation={cut}` cuts long ones as in training.""",
    "mlflow": """\
    import mlflow

    mlflow.pyfunc.load_model("<this folder>").predict([{row}])""",
    "sentexp": "    python -m sentexp predict run=<this folder> {input}",
    "onnx": """\
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(".")
    rows = tokenizer({lists}, padding=True, truncation={cut}, return_tensors="np")
    session = onnxruntime.InferenceSession("model.onnx")
    logits = session.run(None, {{name: rows[name] for name in ("input_ids", "attention_mask")}})[0]

{columns}; pad on the right. The tokenizer frames a text as in training.""",
    "gguf": """\
    llama-cli -m *.gguf -no-cnv --temp 0 -n 1 -p "<prompt>"

The prompt is {prompt} of `prompt` in `sentexp.json`; `answers` there are the tokens of the label
words.""",
}
ORDINAL = """\
    by_label = {{one["label"]: one["score"] for one in outputs[0]}}
    z = torch.tensor([by_label[label] for label in {labels}])
    above = (z[0] + len(z) / 2 * torch.tensor(2).log() - torch.nn.functional.softplus(z[1:]).cumsum(0)).sigmoid()
    probabilities = -torch.cat([torch.ones(1), above, torch.zeros(1)]).diff()

The outputs are not the logits of the labels, but cumulative ones: the last lines give the probabilities in the order
of the labels.
"""
"""How the outputs of an ordinal head are read."""
MULTI_LABEL = """\
    thresholds = {thresholds}
    labels = [one["label"] for one in outputs[0] if one["score"] >= thresholds[one["label"]]]

Each label is judged by itself: its score is the sigmoid of its logit, and it holds where that reaches its threshold,
which was chosen on validation rows.
"""
"""How labels are read, where a text has any number of them."""
JOINED = """

A pair is one text here, its two joined by {between}. A pair that is too long loses its end, and not that of its first
text as in training: shorten the first text before."""


def usage(trained: Trained, form: str, folder: Path) -> str:
    """Return how an export is read.

    Args:
        trained: the weights of the run.
        form: what it was written as.
        folder: of the export.
    """
    if form == "peft" or (form == "merged" and trained.answers):
        return f"```python\n{loading_code(replace(trained, folder=folder), '.')}\n```"
    kind = "pipeline" if form == "merged" else form if form in USAGES else "sentexp"
    pairs = trained.text_pair is not None
    row = {"text": EXAMPLE} | ({"text_pair": EXAMPLE_PAIR} if pairs else {})
    divided = (
        pairs
        and pair_separator(trained.prompt, load_tokenizer(Backbone(folder=trained.folder, revision=""))) is not None
    )
    joined = EXAMPLE + (trained.prompt.between + EXAMPLE_PAIR if pairs else "")
    text = USAGES[kind].format(
        imports="    import torch\n" if trained.loss is HeadLoss.ordinal else "",
        assign="" if trained.loss is HeadLoss.cross_entropy else "outputs = ",
        raw=', function_to_apply="none"' if trained.loss in (HeadLoss.ordinal, HeadLoss.regression) else "",
        then=_then(trained),
        columns=_columns(trained),
        row=_written(row),
        item=_written(row if divided else joined),
        lists=f"[{_written(EXAMPLE)}], [{_written(EXAMPLE_PAIR)}]" if divided else f"[{_written(joined)}]",
        cut='"only_first"' if divided else "True",
        input="input=<table> output=<file>" if pairs else f'--text "{EXAMPLE}"',
        prompt="`head`, the text, `between`, the second text and `tail`" if pairs else "`head`, the text and `tail`",
    )
    whole = kind not in ("pipeline", "onnx") or divided or not pairs
    return text if whole else text + JOINED.format(between=f"`{_written(trained.prompt.between)}`")


def _columns(trained: Trained) -> str:
    """Return what the outputs of a graph are."""
    if trained.scale is not None:
        return "`logits` are scores"
    columns = "The columns of `logits` are those of `labels.json`"
    if trained.thresholds is None:
        return columns
    return f"{columns}: a label holds where the sigmoid of its logit reaches its threshold in `thresholds.json`"


def _then(trained: Trained) -> str:
    """Return what makes probabilities or scores of the outputs of a pipeline, where they are others."""
    if trained.loss is HeadLoss.ordinal:
        return ORDINAL.format(labels=_written(trained.labels))
    if trained.thresholds is not None:
        thresholds = dict(zip(trained.labels, trained.thresholds, strict=True))
        return MULTI_LABEL.format(thresholds=_written(thresholds))
    if trained.scale is not None:
        return "    score = {!r} + {!r} * outputs[0][0]['score']\n".format(*trained.scale)
    return ""


def _written(value: object) -> str:
    """Return a value as code."""
    return json.dumps(value, ensure_ascii=False)
