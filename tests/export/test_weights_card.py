"""The lines in the cards of weights are few, plain, and give the run's probabilities."""

import re

import pytest
import torch

from sentexp.config import ExportConfig, ExportFormat, Precision, TrackingBackend, TrackingConfig, from_conf
from sentexp.export.command import export
from sentexp.inference.scorer import Scorer
from sentexp.models.loading_code import EXAMPLE
from sentexp.models.saved import read_trained

RUNS = {
    "lora": ["peft=lora"],
    "ia3": ["peft=ia3"],
    "full": ["peft=full"],
    "head": ["peft=head"],
    "answers": ["task=causal_lm", "peft=lora", "task.calibration=batch", "task.label_words=[awful,great]"],
    "lengths": ["task=causal_lm", "peft=lora", "task.length_normalization=true", "task.label_words=[bad,wonderful]"],
    "untuned": ["task=causal_lm", "peft=none", "task.label_words=[awful,great]"],
    "full answers": ["task=causal_lm", "peft=full", "task.label_words=[n,p]"],
}


def code_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return code


def run_lines(code):
    names = {}
    with torch.no_grad():
        exec(code, names)
    return names["probabilities"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
@pytest.mark.parametrize("name", RUNS)
def test_the_lines_of_a_card_give_the_probabilities_of_the_run(name, finished, monkeypatch):
    framed = [] if "task=causal_lm" in RUNS[name] else ["task.template='{text}\\nSentiment:'"]
    result = finished(*RUNS[name], *framed)
    trained = read_trained(result.weights)
    wanted = Scorer(trained, precision=Precision.fp32).probabilities([EXAMPLE])[0]
    code = code_of(result.weights / "README.md")
    assert len(code.strip().splitlines()) <= 10
    assert "sentexp" not in code
    monkeypatch.chdir(result.weights)
    assert run_lines(code).tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
    other = run_lines(code.replace(EXAMPLE, "a cold and clumsy film that wastes its cast"))
    assert other.tolist() != pytest.approx(wanted.tolist(), abs=1e-7)


def test_a_card_is_true_and_complete(finished):
    result = finished("peft=lora", "task.template='{text}\\nSentiment:'")
    trained = read_trained(result.weights)
    card = (result.weights / "README.md").read_text()
    assert "More Information Needed" not in card
    for part in (
        trained.revision[:12],
        "negative, positive",
        "`{text}\\nSentiment:`",
        result.identity,
        f"| accuracy | {result.metrics['test/accuracy']:.4f} |",
        "Two Llama layers with random weights",
        "not known to sentexp: ask its owner, and write it here (reviews",
        "python -m sentexp",
    ):
        assert part in card, part
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "\n- sentexp\n---\n" not in card, "it would be taken for an export, which may be replaced"
    low, high = (float(end) for end in re.findall(r"interval of accuracy is (0\.\d+) to (0\.\d+)", card)[0])
    accuracy, rows = result.metrics["test/accuracy"], sum(map(sum, result.confusion))
    for end in (low, high):  # Wilson's: where the accuracy is 1.96 standard errors away, at the rate of the end
        assert abs(accuracy - end) / (end * (1 - end) / rows) ** 0.5 == pytest.approx(1.96, abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(("name", "form"), [("lora", "peft"), ("answers", "peft"), ("answers", "merged")])
def test_the_lines_of_an_exports_card_do_too(name, form, finished, tmp_path, monkeypatch):
    result = finished(*RUNS[name])
    tracking = from_conf(TrackingConfig, backend=TrackingBackend.none)
    place = {"tracking": tracking, "run": str(result.folder), "output": str(tmp_path / "export")}
    folder = export(from_conf(ExportConfig, format=ExportFormat[form], **place))
    wanted = Scorer(read_trained(result.weights), precision=Precision.fp32).probabilities([EXAMPLE])[0]
    code = code_of(folder / "README.md")
    assert len(code.strip().splitlines()) <= 10
    assert "template of a text in training: `" in (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    assert run_lines(code).tolist() == pytest.approx(wanted.tolist(), abs=1e-3)
