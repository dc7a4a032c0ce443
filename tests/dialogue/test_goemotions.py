"""Labels and comments of GoEmotions."""

import gzip
from collections import Counter

import numpy as np
import pytest

from shielded_recrl.dialogue.emotion.goemotions import comments_file, read_comments
from shielded_recrl.dialogue.emotion.labels import (
    EMOTIONS,
    GOEMOTIONS,
    LEARNED,
    NOSTALGIA,
    SPEAKS_FOR,
    emotions_of,
)
from shielded_recrl.errors import UserError


def place(name: str) -> int:
    return EMOTIONS.index(name)


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Labels


def test_every_label_speaks_for_one_of_the_nine_and_none_for_nostalgia():
    assert len(GOEMOTIONS) == 28
    assert set(SPEAKS_FOR.values()) == set(EMOTIONS) - {"nostalgia"}
    assert NOSTALGIA not in LEARNED
    assert len(LEARNED) == 8


def test_numbers_are_those_of_the_published_labels(shared_data):
    published = (shared_data / "goemotions/original_labels.txt").read_text().split()
    assert list(GOEMOTIONS) == published


def test_labels_of_one_emotion_count_once():
    both = emotions_of([GOEMOTIONS.index("anger"), GOEMOTIONS.index("fear")])
    assert both.tolist() == [name == "negative" for name in EMOTIONS]


# Comments


def test_plain_and_compressed_files_read_the_same(tmp_path):
    text = "Thanks, I love it\t15,18\te1\nFine\t27\te2\n"
    (tmp_path / "train.tsv").write_text(text)
    (tmp_path / "dev.tsv.gz").write_bytes(gzip.compress(text.encode()))
    plain_file, packed = (
        read_comments(comments_file(tmp_path, part), 0) for part in ("train", "dev")
    )
    assert plain_file.texts == packed.texts == ["Thanks, I love it", "Fine"]
    np.testing.assert_array_equal(plain_file.shown, packed.shown)
    assert plain_file.targets[0, [place("like"), place("grateful")]].tolist() == [0.5, 0.5]
    assert plain_file.single.tolist() == [False, True]


def test_damaged_lines_are_counted_and_kept_out(tmp_path):
    path = tmp_path / "train.tsv"
    lines = [
        b"Good\t0\te1",
        b"two columns\t0",
        b"\t0\te3",
        b"of unknown label\t28\te4",
        b"no number\tjoy\te5",
        b"no label\t\te6",
        b"\xff\xfe\t0\te7",
        b"x" * 20_001 + b"\t0\te8",
        b"",
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = read_comments(path, 1.0)
    assert found.texts == ["Good"]
    assert found.damaged == Counter(
        {
            "not three columns": 2,
            "no text": 1,
            "unknown label": 3,
            "no UTF-8 text": 1,
            "too long a text": 1,
        }
    )
    message = refused(read_comments, path, 0.5)
    assert "8 of 9" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("files", "part"), [([], "no"), (["train.tsv", "train.tsv.gz"], "two")], ids=["none", "both"]
)
def test_one_file_a_part(files, part, tmp_path):
    for name in files:
        (tmp_path / name).write_text("")
    assert "train.tsv" in refused(comments_file, tmp_path, "train")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "train.tsv").write_text("")
    assert "no comments" in refused(read_comments, tmp_path / "train.tsv", 1.0)
