"""Bad input ends in one clear line, leaves nothing half-written, and holds nobody else up."""

import json
import re

import pytest

from shielded_recrl.ranker.sasrec import SASRec, load, save

pytestmark = pytest.mark.slow

TARGETS = [f"results/data/{name}/stats.json" for name in ("books", "ml25m", "steam")]
ML25M_STUDY = {
    "study": [
        {"dataset": name, "variants": ["shielded"], "seeds": [1]}
        for name in ("books", "ml25m", "steam")
    ]
}


def errors(log):
    """The lines that tell the user what is wrong; there is no trace of a crash."""
    assert "Traceback" not in log
    return re.findall(r"^python -m shielded_recrl[.\w ]+: error: (.+)$", log, re.MULTILINE)


def assert_nothing_written(copy, dataset):
    folder = copy.folder / "results/data" / dataset
    found = [path.name for path in folder.glob("*")] if folder.exists() else []
    assert [name for name in found if name != "raw"] == []


@pytest.fixture(scope="module")
def three_bad(tiny, tmp_path_factory):
    """Raw files that are cut short, of another shape, and missing, one a dataset."""
    copy = tiny.pristine(tmp_path_factory.mktemp("bad") / "copy")
    reviews = (tiny.folder / "results/data/books/raw/reviews_Books_5.json.gz").read_bytes()
    (copy.folder / "cut.json.gz").write_bytes(reviews[: len(reviews) // 2])
    (copy.folder / "ratings.csv").write_text("user,stars\n1,5\n2,3\n")
    changes = ML25M_STUDY | {
        "datasets": {
            "books": {"source": "cut.json.gz"},
            "ml25m": {"source": "ratings.csv"},
            "steam": {"source": "nowhere/steam-200k.csv"},
        }
    }
    result = copy.run("--keep-going", *TARGETS, changes=changes, check=False)
    assert result.returncode != 0
    return copy


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("books", r"^cut\.json\.gz: .*(truncated|cut|damaged|end)"),
        ("ml25m", r"^ratings\.csv.*userId"),
        ("steam", r"^nowhere/steam-200k\.csv: no such file"),
    ],
)
def test_bad_raw_file(three_bad, dataset, says):
    (error,) = errors(three_bad.read(f"results/logs/data/{dataset}/prepare.log"))
    assert re.search(says, error)
    assert_nothing_written(three_bad, dataset)


def test_other_datasets_finish(clean):
    changes = {
        "datasets": {
            "steam": {"source": "nowhere.csv"},
            "ml25m": {"min_interactions": 1000},
        }
    }
    result = clean.run("--keep-going", *TARGETS, changes=ML25M_STUDY | changes, check=False)
    assert result.returncode != 0
    assert json.loads(clean.read(TARGETS[0]))["kept"] > 0
    (steam,) = errors(clean.read("results/logs/data/steam/prepare.log"))
    assert "nowhere.csv" in steam
    (ml25m,) = errors(clean.read("results/logs/data/ml25m/prepare.log"))
    assert "min_interactions 1000" in ml25m
    for dataset in ("ml25m", "steam"):
        assert_nothing_written(clean, dataset)


def test_bad_checkpoints_name_the_file(twin):
    """The ranker of a larger catalogue, put where that of this one belongs, and half of a training."""
    ranker, states = (f"results/ranker/books/{name}.safetensors" for name in ("model", "states"))
    _, about = load(twin.folder / ranker)
    larger = type(about)(**vars(about) | {"n_items": about.n_items + 7})
    save(twin.folder / ranker, SASRec(larger.n_items, larger.settings).state_dict(), larger)
    training = "results/scratch/rl/steam/shielded/seed-1/checkpoint.safetensors"
    (twin.folder / training).parent.mkdir(parents=True, exist_ok=True)
    (twin.folder / training).write_bytes(b"half a checkpoint")
    summary = "results/rl/steam/shielded/seed-1/summary.json"
    again = (states, summary, "--forcerun", "train_policy")
    result = twin.run(*again, "--keep-going", check=False)
    assert result.returncode != 0
    (error,) = errors(twin.read("results/logs/ranker/books/evaluate.log"))
    assert error.startswith(f"{ranker}: trained on {larger.n_items} items")
    assert not (twin.folder / states).exists()
    (error,) = errors(twin.read("results/logs/rl/steam/shielded/seed-1/train.log"))
    assert error.startswith(f"{training}: damaged checkpoint")
    assert error.endswith("delete it to start this run anew")
    assert not (twin.folder / summary).exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"rl": {"stepz": 3}},
            "config: rl.stepz: unknown key; see docs/configuration.md for the known ones",
        ),
        (
            {"datasets": {"yelp": {}}},
            "config: datasets.yelp: unknown dataset; expected one of books, ml25m, steam",
        ),
    ],
)
def test_bad_config_is_one_line(untouched, changes, line):
    result = untouched.run("-n", changes=changes, check=False)
    assert result.returncode != 0
    said = (result.stdout + result.stderr).splitlines()
    # Snakemake itself says which files it read.
    assert [text for text in said if not text.startswith("Config file ")] == [line]
    assert not (untouched.folder / "results").exists()
