"""The whole DAG on real files: ratings, plays, and the weights of a real LM."""

import csv
import json

import polars as pl
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUNS = [("ml25m", "shielded"), ("steam", "stories")]


@pytest.fixture(scope="module")
def real(shared_data, untouched, tmp_path_factory):
    """The finished run of tests/real.yaml, its paths led to the real files."""
    copy = untouched.pristine(tmp_path_factory.mktemp("real") / "copy")
    text = copy.read("tests/real.yaml")
    assert "../shared/data" in text
    (copy.folder / "real.yaml").write_text(text.replace("../shared/data", str(shared_data)))
    copy.run(config="real.yaml")
    return copy


def test_one_whole_row_a_run(real, assert_whole):
    rows = list(csv.DictReader(real.read("results/aggregate_results.csv").splitlines()))
    assert sorted((row["dataset"], row["variant"]) for row in rows) == sorted(RUNS)
    for row in rows:
        assert_whole(row)
        assert row["synthetic"] == "false"
        assert row["sequential"] == str(row["dataset"] != "steam").lower()


def test_separate_ranking_never_moves(real):
    evaluation = json.loads(real.read("results/rl/steam/stories/seed-42/evaluation.json"))
    assert evaluation["served_before"] == evaluation["served_after"]
    for group in ("protected", "heldout"):
        assert evaluation["drift"][group]["max_score_change"] == 0
    assert evaluation["text"]["words_after"] > 0


def test_real_titles_reach_the_texts(real):
    lines = real.read("results/rl/ml25m/shielded/seed-42/explanations.jsonl").splitlines()
    rows = [json.loads(line) for line in lines]
    assert "have no title" not in real.read("results/logs/data/ml25m/prepare.log")
    items = pl.read_parquet(real.folder / "results/data/ml25m/items.parquet")
    assert {"Pulp Fiction", "The Shawshank Redemption"} < set(items["title"])
    categories = dict(items.select("title", "categories").iter_rows())
    assert "Crime" in categories["Pulp Fiction"]
    for row in rows:
        assert not row["title"].startswith("Movie ")
        assert row["categories"] == categories[row["title"]]


def test_base_of_the_user_is_used_in_place(real):
    assert not (real.folder / "results/explainer/steam/stories260K/model").exists()
    assert (real.folder / "results/explainer/steam/stories260K/lora-r16-a32-last_block").is_dir()
