"""Predictions kept per row: written in blocks, read back as they were, texts by their numbers."""

from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentexp.errors import UserError
from sentexp.tracking import predictions
from sentexp.tracking.predictions import file_name, read_predictions, read_rows, write_predictions

LABELS = ["bad", "so so", "good"]


def table(rows):
    texts = [" ".join(["word"] * (number % 40)) for number in range(rows)]
    return pa.table(
        {
            "text": texts,
            "label": pa.array([number % 3 for number in range(rows)], pa.int64()),
            "key": pa.array([number // 2 for number in range(rows)], pa.uint64()),  # every text twice
            "slice.language": pa.array([None if number % 5 == 0 else "de" for number in range(rows)]),
        }
    )


@pytest.fixture(params=[1 << 16, 7])
def written(request, tmp_path, monkeypatch):
    """Return a file of 50 rows, in one block or in many, and the probabilities in it."""
    monkeypatch.setattr(predictions, "BLOCK", request.param)
    said = np.random.default_rng(0).dirichlet([1, 1, 1], 50).astype(np.float32)
    file = tmp_path / file_name("test")
    write_predictions(table(50), LABELS, said, file, {"off_label_mass": said[:, 0]})
    return file, said


def test_what_was_written_is_read(written):
    file, said = written
    found = read_predictions(file)
    assert np.array_equal(found.probabilities, said)
    assert found.targets.tolist() == [number % 3 for number in range(50)]
    assert found.labels == LABELS
    codes, values = found.slices["language"]
    assert [values[code] for code in codes] == ["" if number % 5 == 0 else "de" for number in range(50)]
    codes, values = found.slices["length"]
    assert values[codes[8]] == "1-8 words"
    assert values[codes[9]] == "9-16 words"
    assert values[codes[39]] == "33-64 words"
    whole = pq.read_table(file)
    assert whole.column("predicted").to_pylist() == [LABELS[number] for number in said.argmax(1)]
    assert whole.column("label").to_pylist()[:4] == ["bad", "so so", "good", "bad"]
    assert np.array_equal(whole.column("off_label_mass").to_numpy(), said[:, 0])
    assert list(file.parent.iterdir()) == [file]


def test_a_slice_of_the_data_named_length_stays(tmp_path):
    rows = table(2).append_column("slice.length", pa.array(["a tweet", "an essay"]))
    write_predictions(rows, LABELS, np.full((2, 3), 1 / 3), tmp_path / "test.parquet")
    codes, values = read_predictions(tmp_path / "test.parquet").slices["length"]
    assert [values[code] for code in codes] == ["a tweet", "an essay"]


def test_ids_tell_equal_texts_apart(written):
    ids = read_predictions(written[0]).ids.tolist()
    assert ids[:4] == ["0" * 16, "0" * 16 + "-2", "0" * 15 + "1", "0" * 15 + "1-2"]
    assert len(set(ids)) == 50


def test_rows_come_by_their_numbers_in_any_order(written):
    file, said = written
    found = read_rows(file, [41, 3, 41, 0])
    assert found.column("text").to_pylist() == [table(50).column("text")[number].as_py() for number in (41, 3, 41, 0)]
    assert found.column("p.good").to_pylist() == [pytest.approx(said[number, 2]) for number in (41, 3, 41, 0)]
    assert read_rows(file, []).num_rows == 0


def test_words_of_languages_without_blanks_are_counted(tmp_path):
    rows = table(3).set_column(0, "text", pa.array(["这部电影真的很好看", "ein guter, ein sehr guter Film", "ok"]))
    write_predictions(rows, LABELS, np.full((3, 3), 1 / 3, np.float32), tmp_path / "x.parquet")
    codes, values = read_predictions(tmp_path / "x.parquet").slices["length"]
    assert [values[code] for code in codes] == ["9-16 words", "1-8 words", "1-8 words"]


@pytest.mark.parametrize("content", [b"nothing", None])
def test_another_file_is_refused(tmp_path, content):
    file = tmp_path / "x.parquet"
    if content is None:
        pq.write_table(table(3), file)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match="holds no predictions of sentexp"):
        read_predictions(file)


def test_bytes_that_have_changed_are_noticed(written):
    file, said = written
    content = file.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for place in range(4, len(content) - footer, 5):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with suppress(UserError):
            assert np.array_equal(read_predictions(file).probabilities, said)
        with suppress(UserError):
            assert read_rows(file, range(50)).column("text").to_pylist() == table(50).column("text").to_pylist()
    file.write_bytes(content)
    assert np.array_equal(read_predictions(file).probabilities, said)
