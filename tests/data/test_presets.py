"""The options of public data sets, on rows in the layouts of their authors."""

import gzip
import json

import pytest

from sentexp.config import TargetKind, load_config
from sentexp.data.sources import load_source
from sentexp.data.splits import load_examples
from sentexp.errors import UserError
from sentexp.inference.readers import TextFormat, open_source


def read(name, path, *overrides):
    return load_source(load_config(f"data={name}", f"data.path={path}", *overrides).data)


def rows(found, split="train"):
    table = found.splits[split]
    named = [found.labels[number] for number in table.column("label").to_pylist()]
    return list(zip(table.column("text").to_pylist(), named, strict=True))


def test_sentiment140(tmp_path):
    def line(label, number, text):
        return f'"{label}","{number}","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","someone{number}","{text}"\n'.encode(
            "latin-1"
        )

    training = tmp_path / "training.1600000.processed.noemoticon.csv"
    training.write_bytes(line(0, 1, '@a - that""s a caf\xe9, sadly ') + line(4, 2, "lovely"))
    test = tmp_path / "testdata.manual.2009.06.14.csv"
    test.write_bytes(line(4, 3, "good") + line(2, 4, "so so") + line(0, 5, "bad"))
    found = read("sentiment140", tmp_path, "data.group=user")
    assert rows(found) == [('@a - that"s a caf\xe9, sadly', "negative"), ("lovely", "positive")]
    assert rows(found, "test") == [("good", "positive"), ("bad", "negative")]
    assert found.left_out["test"] == {"left out by data.labels": 1}
    assert found.splits["train"].column("group").to_pylist() == ["someone1", "someone2"]
    assert set(read("sentiment140", training, "data.splits.test=null").splits) == {"train"}
    test.unlink()
    with pytest.raises(UserError, match=r"has no file for the split 'testdata.manual.2009.06.14.csv' .*null carves"):
        read("sentiment140", tmp_path)


def test_semeval2017(tmp_path):
    files = {
        "twitter-2013train-A.txt": '1\tpositive\tsome "open quote\n2\tneutral\tit is 5, or 6\n',
        "twitter-2016test-A.txt": "3\tnegative\tnot so good\t\n4\tpositive\tgreat\t\n",
        "SemEval2017-task4-test.subtask-A.english.txt": "5\tneutral\tcoming soon\t\n",
        "sms-2013test-A.txt": "6\tpositive\tan sms\n",
        "README.txt": "what this is",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    found = read("semeval2017", tmp_path)
    assert rows(found) == [
        ('some "open quote', "positive"),
        ("it is 5, or 6", "neutral"),
        ("not so good", "negative"),
        ("great", "positive"),
    ]
    assert rows(found, "test") == [("coming soon", "neutral")]
    file = tmp_path / "twitter-2016test-A.txt"
    with open_source(str(file), text_format=TextFormat(columns=["id", "label", "text"])) as source:
        assert [text for chunk in source.chunks("text", 9) for text in chunk.texts] == ["not so good", "great"]


def test_a_pattern_of_a_split_that_matches_nothing_is_reported(tmp_path):
    (tmp_path / "README.txt").write_text("what this is")
    with pytest.raises(UserError, match=r"has no file for the split 'twitter-201\[3-6\]\*-A.\*' \(found: README.txt\)"):
        read("semeval2017", tmp_path)


def test_yelp(tmp_path):
    lines = [{"review_id": f"r{n}", "stars": float(n % 5 + 1), "text": f"review\n{n}", "useful": 0} for n in range(5)]
    file = tmp_path / "yelp_academic_dataset_review.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read("yelp", file)
    assert rows(found) == [(f"review\n{n}", str(n + 1)) for n in range(5)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text('"5","dr. g is ""great""\\n"\n"1","no"\n')
    file.unlink()
    csv = read("yelp", tmp_path, "data.columns=[stars,text]")
    assert rows(csv, "test") == [('dr. g is "great"\\n', "5"), ("no", "1")]


def test_amazon_reviews(tmp_path):
    lines = [
        {"rating": 5.0, "title": "Lovely", "text": "I like it", "images": [], "parent_asin": "B1"},
        {"rating": 1.0, "title": "No", "text": "it broke", "images": [{"large": "x"}], "parent_asin": "B2"},
    ]
    file = tmp_path / "All_Beauty.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    found = read("amazon_reviews", file, "data.group=parent_asin")
    assert rows(found) == [("Lovely\nI like it", "5"), ("No\nit broke", "1")]
    assert found.splits["train"].column("group").to_pylist() == ["B1", "B2"]


@pytest.fixture
def tweets(tmp_path):
    """Return a folder in TweetEval's layout."""
    folder = tmp_path / "sentiment"
    folder.mkdir()
    (folder / "mapping.txt").write_text("0\tnegative\n1\tneutral\n2\tpositive\n")
    for split in ("train", "val", "test"):
        (folder / f"{split}_text.txt").write_text(f'"{split} one \n\u2028two @user\nthree\n')
        (folder / f"{split}_labels.txt").write_text("2\n0\n1\n")
    return folder


def test_tweet_eval(tweets):
    for found in (
        read("tweet_eval", tweets.parent),
        read("tweet_eval", tweets, "data.subset=null", "data.labels=null"),
    ):
        assert found.labels == ["negative", "neutral", "positive"]
        assert rows(found, "validation") == [('"val one', "positive"), ("two @user", "negative"), ("three", "neutral")]
        assert set(found.splits) == {"train", "validation", "test"}
    with pytest.raises(
        UserError, match=r"has no dev_text.txt with its dev_labels.txt: it has the splits test, train, val"
    ):
        read("tweet_eval", tweets.parent, "data.splits.validation=dev")
    with pytest.raises(UserError, match=r"is a folder of texts beside labels, which has no column user"):
        read("tweet_eval", tweets.parent, "data.group=user")
    (tweets / "val_labels.txt").write_text("2\n0\n")
    with pytest.raises(UserError, match=r"val_text.txt has 3 lines and val_labels.txt 2: each text needs its label"):
        read("tweet_eval", tweets.parent)
    (tweets / "val_text.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"val_text.txt is not utf-8: name its encoding with data.encoding"):
        read("tweet_eval", tweets.parent)


def test_goemotions(tmp_path):
    for name in ("train", "dev", "test"):
        content = f'{name} "quoted"\t27\tid1\nboth\t2,14\tid2\n[NAME] is sad\t25\tid3\nwow!\t0\tid4\n'
        (tmp_path / f"{name}.tsv").write_text(content)
    (tmp_path / "emotions.txt").write_text("admiration\namusement\n")
    found = read("goemotions", tmp_path)
    assert rows(found, "validation") == [
        ('dev "quoted"', "neutral"),
        ("[NAME] is sad", "sadness"),
        ("wow!", "admiration"),
    ]
    assert found.left_out["train"] == {"unknown label": 1}
    examples = load_examples(load_config("data=goemotions", f"data.path={tmp_path}").data)
    assert [examples.split(name).num_rows for name in ("train", "validation", "test")] == [3, 3, 3]
    config = load_config("data=goemotions", f"data.path={tmp_path}", "task.loss=multi_label")
    several = load_examples(config.data, kind=TargetKind.label_sets)
    named = [[several.labels[number] for number in row.nonzero()[0]] for row in several.targets("test")]
    assert named == [["neutral"], ["anger", "fear"], ["sadness"], ["admiration"]]
    assert several.left_out["train"] == {}
