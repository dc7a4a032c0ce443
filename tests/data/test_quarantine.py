"""Rows put aside: written at the end, in order, whatever bytes they hold."""

import json

import pytest

from shielded_recrl.data.quarantine import Quarantine


def test_rows_and_counts(tmp_path):
    path = tmp_path / "new" / "quarantine.jsonl"
    with Quarantine(path) as quarantine:
        quarantine.add("a.csv", 2, "missing field", "1,,3\r\n")
        quarantine.add("a.csv", 9, "not UTF-8", b"x\xff".decode("utf-8", "surrogateescape"))
        quarantine.add("b.csv", 1, "missing field", "ü" * 300)
        assert not path.exists()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"file": "a.csv", "line": 2, "reason": "missing field", "text": "1,,3"},
        {"file": "a.csv", "line": 9, "reason": "not UTF-8", "text": "x\ufffd"},
        {"file": "b.csv", "line": 1, "reason": "missing field", "text": "ü" * 200},
    ]
    assert quarantine.counts == {
        "a.csv": {"missing field": 1, "not UTF-8": 1},
        "b.csv": {"missing field": 1},
    }
    assert quarantine.first("a.csv") == "line 2: missing field; line 9: not UTF-8"


def test_without_bad_rows_the_file_is_empty(tmp_path):
    with Quarantine(tmp_path / "quarantine.jsonl"):
        pass
    assert (tmp_path / "quarantine.jsonl").read_bytes() == b""


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="no"), Quarantine(tmp_path / "q.jsonl") as quarantine:
        quarantine.add("a.csv", 1, "bad", "text")
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
