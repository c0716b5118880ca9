"""Advice appears where its reason is true, and only there."""

import re
from dataclasses import replace

import pytest

from sentexp.plan import advice, run_states
from sentexp.plan.advice import USUAL_ACCURACY, Outlook, advise, outlook
from sentexp.plan.timing import Measurement, Speed
from sentexp.run.train import train
from sentexp.system.device import choose_precision

ASSUMED = Outlook(accuracy=USUAL_ACCURACY, seen=False)


@pytest.fixture
def costs(config):
    """Return a function from overrides to what a run has to compute."""

    def look(*overrides):
        (run,) = run_states.survey([config(*overrides)])
        return run.costs

    return look


def test_packed_weights_are_advised_against_where_plain_ones_fit(costs):
    told = advice.packed_needlessly(costs("peft=qlora"), ASSUMED)
    assert told.endswith("use peft.quantization=none.")
    assert "peft.quantization=nf4 costs time" in told
    assert advice.packed_needlessly(costs("peft=lora"), ASSUMED) is None
    tight = costs("peft=qlora")
    tight.available = 2**20
    assert advice.packed_needlessly(tight, ASSUMED) is None


def test_a_batch_that_does_not_fit_is_halved_then_recomputed_then_packed(costs):
    run = costs("model.random.hidden_size=128", "model.random.intermediate_size=512")
    assert advice.does_not_fit(run, ASSUMED) is None
    precision = run.inputs.precision
    needed = run.arithmetic.memory(run.largest_batch, precision)
    run.available = 0.8 * needed
    assert re.search(r"use trainer.batch_size=[124] trainer.accumulate", advice.does_not_fit(run, ASSUMED))
    alone = run.largest_batch.cut(run.trainer, replace(run.trainer, batch_size=1))
    run.available = 0.999 * run.arithmetic.memory(alone, precision)
    assert "use trainer.gradient_checkpointing=true and trainer.batch_size=" in advice.does_not_fit(run, ASSUMED)
    run.available = 0.6 * run.arithmetic.weight_bytes(precision) + run.arithmetic.parameters.trainable_total * 12
    assert "use peft=qlora, trainer.gradient_checkpointing=true" in advice.does_not_fit(run, ASSUMED)
    run.available = 1000.0
    assert "no batch does" in advice.does_not_fit(run, ASSUMED)


def test_float32_is_advised_against_where_bfloat16_is_native(costs, monkeypatch):
    slow, auto = costs("trainer.precision=fp32"), costs("trainer.precision=auto")
    monkeypatch.setattr("sentexp.system.device._bf16_is_faster", lambda: True)
    for native in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        assert choose_precision(auto.spec.config.trainer.precision, slow.inputs.device).name == (
            "bf16" if native else "fp32"
        )
        told = advice.slow_arithmetic(slow, ASSUMED)
        assert (told is not None) == native
        assert advice.slow_arithmetic(auto, ASSUMED) is None


def test_padding_is_told_where_rows_are_not_grouped(costs):
    shuffled = costs("trainer.group_by_length=false", "trainer.padding_free=false")
    padding = 1 - shuffled.work.train.tokens / shuffled.work.train.computed.sum()
    told = advice.much_padding(shuffled, ASSUMED)
    assert (told is None) == (padding <= advice.MUCH_PADDING)
    shuffled.work.train.tokens //= 2
    assert "trainer.group_by_length=true" in advice.much_padding(shuffled, ASSUMED)
    grouped = costs()
    grouped.work.train.tokens //= 2
    assert advice.much_padding(grouped, ASSUMED) is None


def test_cut_texts_are_told_with_the_length_that_leaves_them_whole(costs):
    told = advice.cut_texts(costs("data.max_length=20"), ASSUMED)
    length = int(re.search(r"would leave|data.max_length=(\d+) would", told)[1])
    whole = costs(f"data.max_length={length}")
    assert whole.inputs.tokens["train"].cut.mean() <= 0.01
    assert advice.cut_texts(whole, ASSUMED) is None


def test_evaluations_that_take_longer_than_training_are_reported(costs):
    def measured(run, evaluation):
        run.measured = Measurement(
            training=Speed(fixed=1.0, per_token=0.0),
            optimizer=0.0,
            evaluation=Speed(fixed=evaluation, per_token=0.0),
            written=None,
            loading=0.0,
            peak_gib=0.0,
        )
        return run

    assert "trainer.eval_steps" in advice.long_evaluations(measured(costs("trainer.eval_steps=1"), 2.0), ASSUMED)
    assert "data.validation_subset=4" in advice.long_evaluations(measured(costs(), 8.0), ASSUMED)
    assert advice.long_evaluations(measured(costs("trainer.eval_steps=1"), 0.5), ASSUMED) is None
    assert advice.long_evaluations(costs("trainer.eval_steps=1"), ASSUMED) is None


def test_few_test_rows_are_told_until_they_are_many(costs):
    run = costs()
    told = advice.few_test_rows(run, ASSUMED)
    assert told.startswith("8 test rows cannot separate one point of accuracy. At 0.85 (assumed)")
    assert "about 11,771 rows" in told
    run.work.test.rows[0] = 20_000
    assert advice.few_test_rows(run, ASSUMED) is None
    assert advice.few_test_rows(costs(), Outlook(accuracy=1.0, seen=True)) is None
    assert "the mean of finished runs" in advice.few_test_rows(costs(), Outlook(accuracy=0.9, seen=True))


def test_a_test_split_that_is_carved_can_grow(costs, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\n" + "".join(f"film {number} is good,{number % 2}\n" for number in range(200)))
    words = ["data=csv", f"data.path={file}", "data.splits.validation=auto", "data.splits.test=auto"]
    carved = costs(*words, "data.test_fraction=0.1")
    carved.work.test.rows[0] = 10_000
    assert re.search(r"about 11,771 rows: data\.test_fraction=0\.12\.$", advice.few_test_rows(carved, ASSUMED))
    carved.spec.config.data.test_fraction = 0.001
    assert advice.few_test_rows(carved, ASSUMED).endswith(": data.test_fraction=0.0012.")
    carved.spec.config.data.test_fraction = 0.1
    carved.work.test.rows[0] = 2_000  # it would take more than half of the rows
    assert advice.few_test_rows(carved, ASSUMED).endswith("about 11,771 rows.")
    given = costs()
    given.work.test.rows[0] = 10_000
    assert advice.few_test_rows(given, ASSUMED).endswith("about 11,771 rows.")


def test_a_part_of_the_validation_rows_is_reported(costs):
    assert advice.few_validation_rows(costs(), ASSUMED) is None  # all there are
    assert "data.validation_subset=null takes all 8" in advice.few_validation_rows(
        costs("data.validation_subset=4"), ASSUMED
    )


def test_one_seed_is_told_of_sweeps_only(config):
    def runs(*settings):
        return run_states.survey([config(*overrides) for overrides in settings])

    assert "add seed=1,2,3" in advice.one_seed(runs(["peft.r=4"], ["peft.r=8"]))
    assert advice.one_seed(runs(["peft.r=4"])) is None
    assert advice.one_seed(runs(["seed=1"], ["seed=2"])) is None
    assert advice.one_seed(runs(["peft.r=4"], ["peft.r=4"])) is None


def test_the_accuracy_of_finished_runs_is_expected(config):
    result = train(config("peft.r=4"))
    runs = run_states.survey([config("peft.r=4"), config("peft.r=8")])
    expected = outlook(runs)
    assert expected.seen
    assert expected.accuracy == result.metrics["test/accuracy"]
    assert outlook(runs[1:]) == ASSUMED


def test_advice_for_some_runs_names_them_and_for_all_does_not(config):
    runs = run_states.survey([config("peft=lora"), config("peft=qlora")])
    runs[0].name, runs[1].name = "lora", "qlora"
    told = advise(runs)
    assert sum(sentence.startswith("qlora: peft.quantization=nf4") for sentence in told) == 1
    assert sum(sentence.startswith("8 test rows") for sentence in told) == 1
