"""What a wrong command line is told: the key as typed, the value, the legal values, what was probably meant."""

import pytest

from sentexp.config.explain import explain


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["peft=loraa"],
            ["peft=loraa is not an option of peft", "adalora, bitfit, boft,", "Did you mean lora?"],
        ),
        (
            ["data=sst3"],
            [
                "data=sst3 is not an option of data",
                "amazon_reviews, csv, file, fpb, goemotions, imdb, multilingual, rotten_tomatoes",
                "semeval2017, sentiment140, sst2, tweet_eval, tweets, yelp",
                "Did you mean sst2?",
            ],
        ),
        (["peft.rank=8"], ["peft.rank: peft has no key 'rank'", "target_modules"]),
        (["peft.lora_alpha=8"], ["has no key 'lora_alpha'", "Did you mean alpha?"]),
        (["trainer.gradient_accumulation_steps=8"], ["Did you mean accumulate_grad_batches?"]),
        (["optim.learning_rate=1"], ["Did you mean lr?"]),
        (["data=csv", "data.text_column=body"], ["data has no key 'text_column'", "Did you mean text?"]),
        (["data=csv", "data.slice=region"], ["Did you mean slices?"]),
        (["data=sst2", "data.agreement=75"], ["data has no key 'agreement'"]),
        (
            ["data=sst2", "data.labels={0: bad, 1: good}"],
            ["data.labels=", "a list takes a list", "data=csv takes either"],
        ),
        (
            ["data=json"],
            ["data=json is not an option of data", "csv, file, ", "data=file data.path=<file> reads a table of"],
        ),
        (["data.sampling=balanced"], ["natural, balanced_labels, balanced_slices"]),
        (["trainr.max_epochs=1"], ["the configuration has no key 'trainr'", "Did you mean trainer?"]),
        (["peft.r=eight"], ["peft.r=eight", "could not be converted to Integer"]),
        (["peft.quantization=nf5"], ["peft.quantization=nf5", "none, nf4, fp4, int8"]),
        (
            ["peft.quantization=int4_weight_only"],
            ["int8_weight_only, float8_weight_only, hqq4", "torchao's 4-bit products have no gradient"],
        ),
        (["peft.quantization=fp8"], ["peft.quantization=fp8", "torchao's name of it is float8_weight_only"]),
        (["trainer.precision=bfloat16"], ["trainer.precision=bfloat16", "auto, fp32, bf16, fp16"]),
        (["peft=head", "peft.r=8"], ["peft.r: peft has no key 'r'", "usual_lr, quantization"]),
        (["-m", "peft.r=4,x"], ["peft.r=x", "could not be converted to Integer"]),
        (["-m", "peft=lora,qlorra"], ["peft=qlorra is not an option of peft", "Did you mean qlora?"]),
        (["peft.r=[8"], ["peft.r=[8 is not an override that hydra can read"]),
        (["experiment=nope"], ["experiment=nope is not an option of experiment", "llama2_7b_qlora_sst2"]),
        (["peft.r=4", "foo"], ["foo is not an override: write key=value"]),
        (["--config-dir", "nowhere", "peft=att"], ["--config-dir nowhere does not exist"]),
        (["peft.r=null"], ["peft.r=null", "cannot be null"]),
        (["peft.r=eight"], ["it must be a whole number"]),
        (["seed.x=1"], ["seed.x: seed has no key 'x'", "takes a value of its own, as seed="]),
    ],
)
def test_a_wrong_override_is_explained(words, parts):
    sentence = explain(words, RuntimeError("what hydra said"))
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


def test_what_cannot_be_explained_is_quoted():
    assert explain(["peft=lora"], RuntimeError("what hydra said\nmore")) == "what hydra said"
