"""A finished run as a scorer: it says what the run has said, whatever was trained and however it is packed."""

import numpy as np
import pytest
import torch
from rounding import rounding

from sentexp.inference.scorer import Scorer, batches
from sentexp.models.fast import padding_free
from sentexp.models.saved import read_trained
from sentexp.tracking.predictions import file_name, read_predictions

RUNS = {
    "lora": ["peft=lora"],
    "dora": ["peft=dora"],
    "ia3": ["peft=ia3"],
    "qlora": ["peft=qlora"],
    "full": ["peft=full"],
    "head": ["peft=head"],
    "none": ["peft=none"],
    "padded": ["peft=lora", "trainer.padding_free=false", "seed=3"],
    "bf16": ["peft=lora", "trainer.precision=bf16"],
    "answers": ["task=causal_lm", "peft=lora", "task.calibration=batch", "task.label_words=[awful,great]"],
    "normalised": ["task=causal_lm", "peft=lora", "task.length_normalization=true"],
    "full answers": ["task=causal_lm", "peft=full", "task.calibration=contextual"],
    "shots": ["task=causal_lm", "peft=none", "task.shots=2"],
}


@pytest.mark.parametrize("name", RUNS)
def test_probabilities_are_those_of_the_runs_test_rows(name, finished, texts):
    result = finished(*RUNS[name])
    said = read_predictions(result.folder / file_name("test"))
    scorer = Scorer(read_trained(result.weights))
    assert scorer.labels == said.labels
    # In bfloat16 the logits, of about 1, are rounded, and a probability changes by a quarter of what a logit does.
    atol = rounding(0.25, torch.bfloat16, terms=1, sums=4) if name == "bf16" else rounding()
    np.testing.assert_allclose(scorer.probabilities(texts), said.probabilities, rtol=0, atol=atol)


def test_calibrated_probabilities_are_at_the_temperature_of_the_run(finished, texts):
    result = finished(*RUNS["lora"])
    scorer = Scorer(read_trained(result.weights))
    plain, calibrated = scorer.probabilities(texts), scorer.probabilities(texts, calibrated=True)
    odds = np.log(plain[:, 1] / plain[:, 0]) / result.metrics["temperature"]
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), calibrated[:, 1], rtol=0, atol=rounding())
    assert abs(plain - calibrated).max() > 10 * rounding()


@pytest.mark.parametrize("name", ["lora", "answers"])
def test_ragged_texts_keep_their_order_whatever_the_batches(name, finished):
    trained = read_trained(finished(*RUNS[name]).weights)
    ragged = [f"{'good ' * (n * 7 % 31)}film {n}" for n in range(40)]
    alone = [Scorer(trained).probabilities([text])[0] for text in ragged[:6]]
    together = Scorer(trained).probabilities(ragged)
    np.testing.assert_allclose(together[:6], alone, rtol=0, atol=rounding())
    np.testing.assert_allclose(Scorer(trained, max_tokens=1).probabilities(ragged), together, rtol=0, atol=rounding())
    assert together[:, 1].std() > 10 * rounding()
    assert Scorer(trained).probabilities([]).shape == (0, 2)


def test_padded_rows_say_the_same(finished, texts, monkeypatch):
    trained = read_trained(finished(*RUNS["answers"]).weights)
    packed = Scorer(trained).probabilities(texts)
    monkeypatch.setattr(padding_free, "PADDING_FREE_ARCHITECTURES", ())
    padded = Scorer(trained)
    assert padded.packer is None
    np.testing.assert_allclose(padded.probabilities(texts), packed, rtol=0, atol=rounding())


def test_a_text_of_a_million_characters_is_cut_as_in_the_run(finished):
    scorer = Scorer(read_trained(finished(*RUNS["lora"]).weights))
    long = "a warm film " * 90_000
    np.testing.assert_allclose(
        scorer.probabilities([long]), scorer.probabilities([long[:5000]]), rtol=0, atol=rounding()
    )


def test_a_batch_that_does_not_fit_is_halved(finished, texts, monkeypatch):
    scorer = Scorer(read_trained(finished(*RUNS["lora"]).weights))
    wanted = scorer.probabilities(texts)
    forward, sizes = scorer.classifier.forward, []

    def limited(packed, cache=None):
        sizes.append(packed.rows)
        if packed.rows > 2:
            raise MemoryError
        return forward(packed, cache)

    monkeypatch.setattr(scorer.classifier, "forward", limited)
    np.testing.assert_allclose(scorer.probabilities(texts), wanted, rtol=0, atol=rounding())
    assert max(sizes) == 8
    assert sizes.count(2) == 4


def test_batches_go_from_short_to_long_within_the_budget():
    lengths = [9, 1, 4, 4, 2, 30]
    found = list(batches(lengths, 12))
    assert sorted(row for batch in found for row in batch) == list(range(6))
    assert [max(lengths[row] for row in batch) for batch in found] == sorted(
        max(lengths[row] for row in batch) for batch in found
    )
    assert all(len(batch) * max(lengths[row] for row in batch) <= 12 for batch in found[:-1])
    assert found[-1] == [5]
