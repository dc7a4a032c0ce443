"""The lines of the scale benchmark by hand, and the table that the docs show."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_line_goes_through_the_two_largest_sizes(scale):
    assert scale.line([(1000, 9.0), (10, 1.0), (100, 2.7)]) == pytest.approx((0.007, 2.0))
    assert scale.line([(10, 4.0)]) == (0.0, 4.0)
    # What shrinks does not go on shrinking.
    assert scale.line([(10, 4.0), (100, 3.0)]) == (0.0, 3.0)


def test_exponent_of_a_square_is_two(scale):
    assert scale.exponent([(10, 1.0), (100, 100.0)]) == pytest.approx(2)


def test_a_size_beyond_the_budget_is_not_measured(scale):
    points = {
        "1000": {"cpu_seconds": 2.0, "peak_gb": 1.0},
        "10000": {"cpu_seconds": 11.0, "peak_gb": 2.0},
    }
    assert not scale.too_much(points, 100_000, budget=102)
    assert scale.too_much(points, 100_000, budget=100)
    points["10000"]["peak_gb"] = 5.0
    assert scale.too_much(points, 100_000, budget=102)


def test_row_continues_the_line(scale):
    points = {
        "100000": {"cpu_seconds": 100.0, "peak_gb": 1.0},
        "1000000": {"cpu_seconds": 1000.0, "peak_gb": 1.9},
    }
    stage = scale.Stage("users", lambda size: [], sharded=True)
    assert scale.row("embed", stage, points) == [
        *("embed", "1,000,000", "1,000 s, 1.90 GB", "1,000 s, 1.00 GB", "1.00"),
        *("27.8 h, 101 GB", "32"),
    ]


def test_docs_show_the_table_of_the_results(scale):
    assert (ROOT / "benchmarks/scale/table.md").read_text() in (ROOT / "docs/scale.md").read_text()
