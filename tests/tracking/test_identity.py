"""Identity: what a run computes, not where it is written down."""

import shutil

from sentexp.data.splits import load_examples
from sentexp.tracking.identity import code_version, fingerprint


def identity(config):
    return fingerprint(config, load_examples(config.data).digest(), "revision")


def test_bookkeeping_does_not_change_an_identity(config, reviews, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(reviews, moved)
    same = identity(config())
    for override in (
        f"data.path={moved}",
        "output_dir=x",
        "trainer.save_steps=3",
        "tracking.experiment=y",
        "trainer.log_every_n_steps=9",
    ):
        assert identity(config(override)) == same, override


def test_everything_else_does(config, reviews, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(reviews, changed)
    with (changed / "train.tsv").open("a") as file:
        file.write("one more film\t1\n")
    settings = (
        "seed=1",
        "peft.r=4",
        "peft=dora",
        "optim.lr=2",
        "trainer.batch_size=4",
        f"data.path={changed}",
        "peft=head",
        "peft=none",
    )
    identities = [identity(config(override)) for override in settings]
    assert len({*identities, identity(config())}) == len(settings) + 1


def test_the_code_has_a_version():
    assert len(code_version()) == 64
