"""The quality benchmark, from a file of pairs to its results, on a catalogue of a few items."""

import gzip
import importlib.util
from pathlib import Path

import pytest
import torch

from shielded_recrl.files import read_json
from shielded_recrl.ranker.settings import RankerSettings

FILE = Path(__file__).parents[2] / "benchmarks" / "ranking_quality" / "run.py"


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("ranking_quality", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def test_the_last_two_items_are_held_out(benchmark, tmp_path):
    path = tmp_path / "pairs.txt.gz"
    path.write_bytes(gzip.compress(b"1 5\n1 2\n1 3\n1 4\n2 1\n2 2\n2 5\n"))
    splits = benchmark.leave_one_out(benchmark.read_sequences(path))
    assert (splits.n_users, splits.n_items) == (2, 5)
    assert [splits.train[user].tolist() for user in (1, 2)] == [[5, 2], [1]]
    assert [splits.valid[user].tolist() for user in (1, 2)] == [[3], [2]]
    assert [splits.test[user].tolist() for user in (1, 2)] == [[4], [5]]


def test_runs_are_added_to_the_results(benchmark, tmp_path):
    """Everybody takes the items in one circle, so that a trained ranker finds the next one."""
    path = tmp_path / "pairs.txt.gz"
    rows = [f"{user} {(user + step) % 20 + 1}\n" for user in range(1, 61) for step in range(8)]
    path.write_bytes(gzip.compress("".join(rows).encode()))
    settings = RankerSettings(dim=16, dropout=0, max_epochs=12, learning_rate=0.02)
    for name in ("first", "second"):
        benchmark.main(path, name=name, threads=torch.get_num_threads(), settings=settings)
    results = read_json(tmp_path / "results.json")
    assert set(results) == {"baselines", "first", "second"}
    assert results["first"]["test"]["ndcg@10"]["mean"] > 0.9
    assert results["first"]["curve"] == results["second"]["curve"]
    assert set(results["baselines"]) == {"popularity", "item_knn", "ease"}
