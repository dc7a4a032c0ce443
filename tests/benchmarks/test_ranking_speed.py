"""The clock, the data and the tables of benchmarks/ranking_speed, without any peer."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "ranking_speed"


@pytest.fixture
def load(monkeypatch):
    """Import a module of the benchmark by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module
    # Other benchmarks have a `run` too.
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_meter_leaves_out_the_warm_up(load, monkeypatch):
    measure = load("measure")
    clock = iter([0.0, 5.0, 9.0, 10.0, 11.5])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    meter = measure.Meter(warm_up=2, seconds=2)
    assert [meter.step(targets) for targets in (100, 200, 7, 8)] == [False, False, False, True]
    assert (meter.steps, meter.targets, meter.elapsed) == (2, 15, 2.5)


def test_sequences_keep_their_order(load, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("2 9\n1 5\n2 3\n1 4\n2 8\n")
    rows = load("measure").read_sequences(path)
    assert [row.tolist() for row in rows] == [[5, 4], [9, 3, 8]]


def test_synthetic_histories_have_the_shape_they_promise(load):
    synthetic = load("synthetic")
    lengths = synthetic.history_lengths(np.random.default_rng(3))
    assert len(lengths) == 6_040
    assert lengths.sum() == 999_611
    assert lengths.min() >= 20
    assert lengths.max() <= 2_300
    # MovieLens-1M: 96.
    assert 80 < np.median(lengths) < 112


def test_tables_compare_with_the_fastest_peer(load):
    run = load("run")
    rows = [
        measurement("this project", "ce", 200, 2.0),
        measurement("this project", "sampled_softmax", 900, None),
        measurement("RecTools", "ce", 90, 8.0),
        measurement("RecTools", "ce", 110, 12.0),
        measurement("SASRec.pytorch", "bce", 300, 5.0),
    ]
    contenders = [{"name": row["peer"], "loss": row["loss"]} for row in rows]
    [(setting, table)] = run.summaries(
        {"runs": rows, "contenders": contenders[:3] + contenders[4:]}
    ).items()
    assert setting == (64, 200)
    assert [row["speed"] for row in table] == [200, 900, 100, 300]
    assert table[2]["evaluation"] == 10
    assert list(run.ratios(table)) == [
        "full cross-entropy: 2.00 times the speed of RecTools",
        "sampled softmax: 3.00 times the speed of the fastest peer, SASRec.pytorch (bce)",
        "full ranking: 2.50 times the speed of the fastest peer, SASRec.pytorch",
    ]


def measurement(peer: str, loss: str, speed: float, ranking: float | None) -> dict:
    return {
        "peer": peer,
        "loss": loss,
        "dim": 64,
        "max_len": 200,
        "targets_per_second": speed,
        "seconds_per_step": 1.0,
        "evaluation_seconds": ranking,
        "peak_rss_mb": 1.0,
    }
