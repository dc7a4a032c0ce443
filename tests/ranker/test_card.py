"""The card: its sentence, its tables, what it admits, and its figure."""

import copy

import pytest

from shielded_recrl.ranker.card import card, draw_curve, verdict
from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.sasrec import Checkpoint
from shielded_recrl.ranker.settings import RankerSettings

STATS = {
    "dataset": "books",
    "synthetic": False,
    "sequential": True,
    "settings": {"split": "per_user"},
    "rows_read": 12345,
}
HISTORY = [
    {"epoch": 1, "loss": 5.0, "ndcg@10": None},
    {"epoch": 2, "loss": 4.5, "ndcg@10": 0.1234},
    {"epoch": 3, "loss": 4.2, "ndcg@10": 0.11},
]
CHECKPOINT = Checkpoint(RankerSettings(dim=48), 4, "f" * 64, 99, 2)
SPLITS = Splits.from_sequences([[1, 2], [2, 3]], [[3], [1]], [[4], [4]], 4)


def entry(level: float, above: tuple[float, float, float] | None = None) -> dict:
    """Metrics of a model on a split, all near one level."""
    names = [f"{name}@{k}" for name in ("ndcg", "hr", "mrr") for k in (1, 5, 10, 20)]
    found = {name: level + place / 1000 for place, name in enumerate(names)}
    intervals = {name: {"low": value - 0.01, "high": value + 0.01} for name, value in found.items()}
    found |= {"users": 2, "coverage@10": 0.75, "intervals": intervals}
    if above:
        found["ranker_above"] = dict(zip(("mean", "low", "high"), above, strict=True))
    return found


@pytest.fixture
def metrics() -> dict:
    return {
        "valid": entry(0.3),
        "test": entry(0.2),
        "popularity": {
            "valid": entry(0.1, (0.2, 0.15, 0.25)),
            "test": entry(0.1, (0.1, 0.05, 0.2)),
        },
        "ease": {
            "penalty": 200.0,
            "valid": entry(0.15, (0.15, 0.1, 0.2)),
            "test": entry(0.16, (0.04, 0.012, 0.07)),
        },
        "best_baseline": "ease",
    }


@pytest.mark.parametrize(
    ("above", "claim", "numbers"),
    [
        ((0.04, 0.012, 0.07), "SASRec earns its place", "0.0400 above that of EASE"),
        ((-0.04, -0.07, -0.012), "SASRec does not earn its place", "0.0400 below that of EASE"),
        ((0.01, -0.02, 0.03), "It is not shown that SASRec earns its place", "-0.0200 to +0.0300"),
        ((-0.01, -0.03, 0.0), "It is not shown that SASRec earns its place", "0.0100 below"),
    ],
)
def test_the_sentence_follows_the_paired_interval(metrics, above, claim, numbers):
    metrics["ease"]["test"]["ranker_above"] = dict(zip(("mean", "low", "high"), above, strict=True))
    sentence = verdict(STATS, metrics)
    assert sentence.startswith(f"**{claim} on the dataset books:")
    assert numbers in sentence
    assert "2 users" in sentence
    assert sentence in card(STATS, SPLITS, CHECKPOINT, HISTORY, metrics)


def test_tables(metrics):
    lines = card(STATS, SPLITS, CHECKPOINT, HISTORY, metrics).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert "| rows read | 12,345 |" in lines
    assert "| train / valid / test | 4 / 2 / 2 |" in lines
    assert "| density | 100.000% |" in lines
    assert rows["split"] == "| split | `per_user`: tested on the last items of every user |"
    for name, value in CHECKPOINT.settings.model_dump().items():
        assert f"| `{name}` | {value} |" in lines
    for line in ("| seed | 99 |", "| epochs run | 3 |", "| epoch kept | 2 |"):
        assert line in lines
    assert "0.1234" in next(line for line in lines if line.startswith("The weights of epoch 2"))
    assert "| SASRec | 0.2020 (0.1920 to 0.2120) | 0.2060 (0.1960 to 0.2160) |" in rows["SASRec"]
    assert "| EASE | +0.1500 (+0.1000 to +0.2000) | +0.0400 (+0.0120 to +0.0700) |" in lines
    assert "| 20 | 0.3030 | 0.3070 | 0.3110 | 0.2030 | 0.2070 | 0.2110 |" in lines
    assert "item-kNN" not in rows
    assert any("EASE: penalty 200, chosen on the valid split." in line for line in lines)
    widths = {}
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            width = widths["now"] if above.startswith("|") else line.count("|")
            assert line.count("|") == width
            widths["now"] = width


def test_a_missing_order_and_synthetic_data_are_said(metrics):
    plain = card(STATS, SPLITS, CHECKPOINT, HISTORY, metrics)
    assert "No order" not in plain
    assert "synthetic:" not in plain
    steam = copy.deepcopy(STATS) | {"dataset": "steam", "sequential": False, "synthetic": True}
    text = card(steam, SPLITS, CHECKPOINT, HISTORY, metrics)
    head = text[: text.index("## Dataset")]
    assert "was drawn at random" in head
    assert "synthetic dataset steam" in head
    assert "| ordered in time | no |" in text
    assert "The dataset is synthetic: nothing follows" in text
    assert "training has seen what others did after" not in text


def test_the_split_by_time_sees_no_future(metrics):
    stats = STATS | {"settings": {"split": "global_time"}}
    text = card(stats, SPLITS, CHECKPOINT, HISTORY, metrics)
    assert "training has seen what others did after" not in text
    assert "the newest interactions of all users" in text


def test_the_figure_is_the_same_bytes_and_shows_the_numbers(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_curve(tmp_path / name, HISTORY, best_epoch=2)
    first = (tmp_path / "a.svg").read_text()
    assert first == (tmp_path / "b.svg").read_text()
    assert "NDCG@10, valid split" in first
    assert "<dc:date>" not in first
    draw_curve(tmp_path / "b.svg", [*HISTORY[:2], HISTORY[2] | {"ndcg@10": 0.2}], best_epoch=2)
    assert first != (tmp_path / "b.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]
    assert first.rstrip().endswith("</svg>")
