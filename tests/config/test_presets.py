"""Every preset trains: a few steps of the tiny model on rows in the files of its data set."""

import pytest

from sentexp.config import CausalLM, Quantization, conf_dir, load_config, method_name
from sentexp.run.train import train

PRESETS = sorted(file.stem for file in (conf_dir() / "experiment").glob("*.yaml"))
WORDS = {2: "[bad,good]", 3: "[bad,even,good]"}  # bytes are the tokens of the tiny model: first letters must differ
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


QUICK = ("five_seeds", "gpt2_full_sst2", "llama2_7b_qlora_fpb", "one_minute")
"""Presets that the default tests train: a sweep's, one of every weight, one in 4 bits, one of upper layers."""


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PRESETS]
)
def test_every_preset_trains_a_few_steps(preset, corpora, tmp_path):
    """The paged optimizers need a GPU, so adamw stands in for them; everything else is as written."""
    plain = load_config(f"experiment={preset}")
    quick = ["model=tiny", "optim=adamw", "trainer.max_steps=2", "trainer.batch_size=4", "data.max_length=24"]
    quick += ["data.train_subset=16", "data.validation_subset=6", "trainer.progress_bar=false", "tracking=none"]
    if plain.data.name in ("imdb", "rotten_tomatoes"):
        quick += ["data.test_fraction=0.002"]
    else:
        quick += [f"data.path={corpora / plain.data.name}"]
    if getattr(plain.peft, "layers_to_transform", None):
        quick += ["peft.layers_to_transform=[1]"]
    if plain.data.name == "multilingual":
        quick += ["data.languages=[german]"]
    if isinstance(plain.task, CausalLM):
        quick += [f"task.label_words={WORDS[len(plain.data.class_names())]}"]
    config = load_config(f"experiment={preset}", *quick, f"output_dir={tmp_path}")
    assert (config.task.__class__, method_name(config.peft)) == (plain.task.__class__, method_name(plain.peft))
    result = train(config)
    assert result.metrics["train/steps"] == 2
    assert 0 <= result.metrics["test/auroc_macro"] <= 1
    assert bool(result.baselines) == bool(config.baseline or isinstance(config.task, CausalLM))
    if isinstance(config.task, CausalLM):
        assert "untuned" in result.baselines


def test_the_published_recipes_are_written_as_published():
    for preset, storage in (("llama2_7b_qlora_multilingual", "nf4"), ("llama2_7b_lora_multilingual", "none")):
        config = load_config(f"experiment={preset}")
        assert (config.peft.r, config.peft.alpha, config.peft.dropout) == (16, 64, 0.1)
        assert set(config.peft.target_modules) == SEVEN
        assert config.peft.quantization is Quantization[storage]
        assert len(config.data.class_names()) == 3
        assert config.trainer.batch_size * config.trainer.accumulate_grad_batches in (50, 100)
    few = load_config("experiment=llama2_7b_qlora_multilingual_2pct")
    assert (few.data.train_subset, few.trainer.max_epochs, few.baseline) == (0.02, 10, True)
    assert few.trainer.batch_size * few.trainer.accumulate_grad_batches == 16


@pytest.mark.parametrize(
    ("preset", "axis"),
    [
        ("llama2_13b_chat_sst2_rows", {"data.train_subset": "100,500,1000,5000,10000,null"}),
        ("llama2_13b_chat_sst2_epochs", {"data.train_subset": "100", "trainer.max_epochs": "1,10,20,50"}),
        ("learning_curve", {"data.train_subset": "50,100,200,500,1000"}),
        ("rank_sweep", {"peft.r": "4,8,16,32,64"}),
        ("five_seeds", {"seed": "1,2,3,4,5"}),
    ],
)
def test_presets_that_are_sweeps_have_these_axes(preset, axis):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = compose("config", [f"experiment={preset}"], return_hydra_config=True).hydra
    assert found.mode.name == "MULTIRUN"
    assert {key: str(value) for key, value in found.sweeper.params.items()} == axis
