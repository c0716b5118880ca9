"""Golden numbers: what a few steps of the tiny model give. Others need another `NUMERICS_VERSION`.

Measured with AVX512, AVX2 and neither, these losses differ by 3e-6 at most, and by 1e-4 they may. A change that should
only round otherwise passes; one that draws other dropout masks, orders rows otherwise or steps elsewhere fails.
"""

import json

import pytest

ROUNDING = 1e-4

CASES = {
    "LoRA with dropout": (
        ["peft=lora", "peft.dropout=0.2", "optim.schedule=cosine", "optim.weight_decay=0.1"],
        [0.67717, 0.74792, 0.88244, 0.6835, 0.70542, 0.63985],
    ),
    "DoRA": (
        ["peft=dora", "peft.r=4"],
        [0.67717, 0.7071, 0.98797, 0.76105, 0.82537, 0.58557],
    ),
    "IA3": (
        ["peft=ia3"],
        [0.67717, 0.71724, 0.78917, 0.69025, 0.69913, 0.72788],
    ),
    "QLoRA": (
        ["peft=qlora"],
        [0.67674, 0.74977, 0.84224, 0.68317, 0.72456, 0.63727],
    ),
    "full": (
        ["peft=full"],
        [0.67717, 0.82639, 0.97611, 0.75042, 0.73962, 0.63496],
    ),
    "head": (
        ["peft=head"],
        [0.67717, 0.71707, 0.78886, 0.6901, 0.69895, 0.72766],
    ),
    "padded": (
        ["peft=lora", "trainer.padding_free=false"],
        [0.67717, 0.75348, 0.84528, 0.6721, 0.74497, 0.63577],
    ),
    "accumulated, weighted": (
        [
            "trainer.batch_size=3",
            "trainer.accumulate_grad_batches=2",
            "data.train_subset=25",
            "data.class_weights=balanced",
        ],
        [0.67371, 0.72289, 0.83216, 1.10653, 0.42884, 0.7272, 0.7347],
    ),
    "token budget": (
        ["trainer.max_tokens=200"],
        [0.685, 0.65958, 0.85355, 0.72291, 0.7536, 0.95788, 0.49694, 0.78303, 0.71118, 0.71341],
    ),
    "answers": (
        [
            "task=causal_lm",
            "task.template=auto",
            "task.label_words=[awful,great]",
            "task.calibration=batch",
            "peft.dropout=0.2",
        ],
        [5.5644, 5.32057, 5.14468, 4.99662, 0.69088, 0.70422],
    ),
    "label words": (
        ["task=causal_lm", "task.template=auto", "task.label_words=[bad,good]", "task.loss=label_words"],
        [2.24102, 1.46958, 0.68072, 1.23915, 1.16388, 1.228],
    ),
}
"""Overrides, and the losses of the training steps, of the best evaluation and of the test split."""


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_computes_what_it_computed_before(case, train):
    overrides, expected = CASES[case]
    result = train("optim.lr=1e-2", "baseline=false", *overrides)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    found = [*losses, result.metrics["best/loss"], result.metrics["test/loss"]]
    assert found == pytest.approx(expected, rel=0, abs=ROUNDING), (
        "these are other numbers than before: if that is meant, give tracking/identity.py another NUMERICS_VERSION, "
        "and this test its new numbers"
    )
