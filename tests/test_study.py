"""What runs and where its files lie."""

import shlex

import pytest

from shielded_recrl.config import Config, base_name, load_config
from shielded_recrl.study import Study, present

HUB = "org/lm"
COMMIT = "0" * 40
HUB_BASE = {"base": HUB, "revision": COMMIT}
DOWNLOADS = {
    "books-2014": {"old.gz": {"url": "https://x/old.gz", "max_bytes": 7}, "old-meta.gz": {}},
    "books-2023": {
        "a.gz": {"url": "https://x/a.gz?b&c", "bytes": 5, "sha256": "ab", "md5": "cd"},
        "b.gz": {},
    },
    "steam": {"plays.csv": {"url": None, "license": "theirs"}, "games.gz": {}},
}


def study(**values):
    return Study(load_config(values), DOWNLOADS)


def cell(dataset, *variants, seeds=(1,)):
    return {"dataset": dataset, "variants": list(variants), "seeds": list(seeds)}


def test_runs_are_each_once_in_the_order_of_the_config():
    made = study(
        study=[
            cell("steam", "no_proj", seeds=[2, 1]),
            cell("books", "shielded"),
            cell("steam", "shielded", "no_proj", seeds=[1]),
        ]
    )
    assert made.runs == [
        ("steam", "no_proj", 2),
        ("steam", "no_proj", 1),
        ("books", "shielded", 1),
        ("steam", "shielded", 1),
    ]
    assert made.datasets == ["steam", "books"]


def test_raw_files_of_each_source(tmp_path):
    made = study(
        datasets={
            "books": {"source": "download"},
            "ml25m": {"source": str(tmp_path)},
            "steam": {"source": "my plays.csv", "metadata": "games.json.gz"},
        },
    )
    folder = "resources/raw/books-2023"
    assert made.raw_paths("books") == [f"{folder}/a.gz", f"{folder}/b.gz"]
    assert made.raw_paths("ml25m") == [str(tmp_path / "ratings.csv"), str(tmp_path / "movies.csv")]
    assert shlex.split(made.raw_flags("steam", {})) == [
        *("--interactions", "my plays.csv", "--metadata", "games.json.gz"),
    ]
    # Of what a storage holds, a job reads its local copy.
    copies = {"interactions": f"copies/{folder}/a.gz", "metadata": "b's.gz"}
    assert shlex.split(made.raw_flags("books", copies)) == [
        *("--interactions", f"copies/{folder}/a.gz", "--metadata", "b's.gz"),
    ]
    assert "--synthetic False" in made.prepare_flags("steam")
    embedded = Study(Config(), {})
    assert embedded.raw_inputs("steam") == {"world": "results/data/steam/raw"}
    for world in ("results/data/steam/raw", "copies/steam/raw"):
        assert shlex.split(embedded.raw_flags("steam", {"world": world})) == [
            *("--interactions", f"{world}/steam-200k.csv"),
            *("--metadata", f"{world}/steam_games.json.gz"),
        ]
    assert "--synthetic True" in embedded.prepare_flags("books")


def test_editions_and_metadata_alone_can_be_fetched():
    made = study(
        datasets={
            "books": {"source": "download", "edition": 2014},
            "steam": {"source": "./plays.csv", "metadata": "download"},
        },
        study=[cell("books", "shielded")],
    )
    folder = "resources/raw/books-2014"
    assert made.raw_paths("books") == [f"{folder}/old.gz", f"{folder}/old-meta.gz"]
    assert made.raw_paths("steam") == ["./plays.csv", "resources/raw/steam/games.gz"]
    # The user's own file is missing; what a rule fetches is an input all the same.
    assert made.raw_inputs("steam") == {"metadata": "resources/raw/steam/games.gz"}


def test_a_file_of_the_user_is_never_an_output_of_a_rule(tmp_path, monkeypatch):
    def of(dataset, **settings):
        return study(datasets={dataset: settings}, study=[cell(dataset, "shielded")])

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "resources/raw/steam"
    for plays in ("resources/raw/steam/plays.csv", "./resources/raw/steam/plays.csv"):
        made = of("steam", source=plays, metadata="results/games.json.gz")
        own = [str(folder / "plays.csv"), str(tmp_path / "results/games.json.gz")]
        assert made.raw_paths("steam") == own
        assert made.raw_inputs("steam") == {}
    folder.mkdir(parents=True)
    (folder / "plays.csv").touch()
    assert made.raw_inputs("steam") == {"interactions": own[0]}
    assert shlex.split(made.raw_flags("steam", {}))[1] == own[0]
    # A folder of the user's files.
    made = of("steam", source="resources/raw/steam")
    assert made.raw_paths("steam")[0] == str(folder / "steam-200k.csv")
    # One that a rule does fetch.
    made = of("books", source="./resources/raw/books-2023/a.gz")
    assert made.raw_inputs("books") == {"interactions": "resources/raw/books-2023/a.gz"}


def test_downloads_name_what_is_known_of_them():
    made = study()
    assert shlex.split(made.download_flags("books-2023", "a.gz")) == [
        *("--url", "https://x/a.gz?b&c", "--size", "5", "--sha256", "ab", "--md5", "cd"),
    ]
    assert made.download_flags("books-2014", "old.gz") == "--url https://x/old.gz --max-bytes 7"
    # Nothing is fetched that has no address.
    assert made.fetched == {
        "resources/raw/books-2014/old.gz",
        "resources/raw/books-2023/a.gz",
    }


def test_what_rules_make_is_told_from_what_the_user_has():
    made = study()
    rules = ("results/data/books/raw", "resources/models/org--lm", "resources/raw/books-2023/a.gz")
    assert all(map(made.made, rules))
    own = ("resources/raw/books-2023/b.gz", "s3://bucket/key", "/data/results/plays.csv", "./lm")
    assert not any(map(made.made, own))


def test_files_that_runs_share_are_each_once():
    made = study(
        datasets={"books": {"source": "download"}, "steam": {}},
        variants={
            "shielded": {},
            "no_proj": {"shield": {"kind": "none"}},
            "hub": {"explainer": HUB_BASE, "shield": {"kind": "none"}},
        },
        study=[cell("books", "no_proj", "hub", seeds=[1, 2]), cell("steam", "shielded", "no_proj")],
    )
    files = made.shared_files()
    assert len(files) == len(set(files))
    kinds = [path.split("/")[1] for path in files]
    # Of the two bases on books and the one on steam: a read-out, its curve and a LoRA init each.
    assert (kinds.count("shield"), kinds.count("explainer")) == (3 * 2 + 1, 3 + 2)
    assert "results/data/steam/raw" in files
    assert "results/data/books/raw" not in files
    assert made.run_paths("steam", "shielded")["bases"] in files
    assert not [path for path in files if not path.startswith("results/")]


def test_missing_files_of_the_user_are_no_inputs(tmp_path):
    there = tmp_path / "there"
    there.touch()
    paths = ["results/made", "s3://bucket/key", str(there), str(tmp_path / "missing")]
    assert [path for path in paths if present(path)] == paths[:-1]


def test_files_of_the_models_of_the_user_are_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {}
    for folder in ("lm", "resources/models/bert", "toxic"):
        (tmp_path / folder / "onnx").mkdir(parents=True)
        for name in (".gitattributes", "config.json", "model.safetensors"):
            (tmp_path / folder / name).touch()
        files[folder] = [f"{folder}/config.json", f"{folder}/model.safetensors"]
    made = study(
        explainer={"base": "./lm"},
        evaluation={"bertscore_model": "resources/models/bert"},
        audit={"scorer": "./toxic"},
    )
    assert made.base_inputs("books", "lm") == files["lm"]
    for inputs in (made.train_inputs, made.evaluate_inputs, made.probe_inputs):
        assert inputs("books", "no_proj")["base"] == files["lm"]
    assert made.scorer_inputs() == files["toxic"]
    # Absolute, as rule `fetch` makes folders with such names.
    bert = [str(tmp_path / name) for name in files["resources/models/bert"]]
    assert made.bertscore_inputs() == bert


def test_models_that_are_no_folder_of_the_user_add_no_files(tmp_path):
    made = study()
    assert made.base_inputs("books", "embedded") == ["results/explainer/books/embedded/model"]
    assert (made.bertscore_inputs(), made.scorer_inputs()) == ([], [])
    hub = study(
        explainer={"base": HUB, "revision": COMMIT},
        evaluation={"bertscore_model": str(tmp_path / "missing")},
        audit={"scorer": "org/toxic", "scorer_revision": COMMIT},
    )
    assert hub.base_inputs("books", "org--lm") == ["resources/models/org--lm"]
    assert (hub.bertscore_inputs(), hub.scorer_inputs()) == ([], [])


@pytest.mark.parametrize(
    ("explainer", "name", "path"),
    [
        ({}, "embedded", "results/explainer/books/embedded/model"),
        ({"precision": "nf4"}, "embedded-nf4", "results/explainer/books/embedded/model"),
        ({"base": HUB, "revision": COMMIT}, "org--lm", "resources/models/org--lm"),
        ({"base": "../models/lm"}, "lm", "../models/lm"),
    ],
)
def test_base_has_one_name_and_one_folder(explainer, name, path):
    made = study(explainer=explainer)
    assert base_name(made.variants["shielded"].explainer) == name
    assert made.base_path("books", name) == path
    assert made.base_of({"dataset": "books", "base": name}) == path
    assert made.base_of({"dataset": "books", "variant": "shielded", "seed": "1"}) == path


def test_variants_of_two_hub_bases_keep_their_commits():
    made = study(
        variants={
            "shielded": {},
            "hub": {"explainer": {"base": HUB, "revision": COMMIT}},
            "hub4": {"explainer": {"base": HUB, "revision": COMMIT, "precision": "nf4"}},
        },
        study=[cell("books", "shielded")],
    )
    assert made.revisions() == {"org--lm": COMMIT}
    assert set(made.bases) == {"embedded", "org--lm", "org--lm-nf4"}


def test_only_the_shield_that_reads_a_file_waits_for_it():
    made = Study(Config(), {})
    assert "bases" in made.train_inputs("books", "shielded")
    assert "bases" not in made.train_inputs("books", "no_proj")
    assert "bases" not in made.train_inputs("books", "separate")
    assert "readout" in made.train_inputs("books", "shielded")
    assert "readout" in made.train_inputs("books", "no_penalty")  # drift is logged
    assert made.evaluate_inputs("books", "no_proj").keys() == {"readout", "base"}


def test_shards_are_inputs_of_the_jobs_that_join_them():
    alone, shared = study(), study(resources={"shards": 2})
    place, folder = ("books", "embedded", "96"), "results/shield/books/embedded/prompt-96"
    assert alone.readout_inputs(*place) == alone.bases_inputs(*place, "bases-0.9999") == {}
    assert shared.readout_inputs(*place) == {
        "parts": [f"{folder}/states/shard-{index}-of-2" for index in range(2)]
    }
    default = shared.bases_inputs(*place, "bases-0.9999")
    assert default == {"parts": [f"{folder}/moments-plain/shard-{i}-of-2" for i in range(2)]}
    # What differs in the cut alone is cut from the same moments.
    assert shared.bases_inputs(*place, "bases-0.99999") == default
    weighted = shared.bases_inputs(*place, "bases-score-0.9999")
    assert weighted.keys() == {"readout", "ranker", "parts"}
    assert set(shared.moment_settings) == {"moments-plain", "moments-score"}


def test_ablations_share_what_they_do_not_change():
    made = Study(Config(), {})
    default = made.run_paths("books", "shielded")
    longer = made.run_paths("books", "long_expl")
    assert default == made.run_paths("books", "kl0")
    assert longer["adapter"] == default["adapter"]
    assert longer["readout"] != default["readout"]
    assert made.run_paths("books", "lora4")["readout"] == default["readout"]
    assert made.run_paths("books", "lora4")["adapter"] != default["adapter"]


@pytest.mark.parametrize(
    ("changed", "rerun"),
    [
        ({"energy": 0.9}, {"shielded", "no_penalty", "random", "ranker", "all_blocks"}),
        ({"weight": "score"}, {"shielded", "no_penalty", "random", "all_blocks"}),
        ({"penalty": 5.0}, {"shielded", "all_blocks", "penalty_only"}),
    ],
)
def test_a_shield_setting_reruns_the_variants_that_read_it(changed, rerun):
    watched = (
        *("shielded", "no_penalty", "random", "ranker", "all_blocks", "penalty_only"),
        *("no_proj", "separate", "activated"),
    )
    before, after = study(), study(shield=changed)
    assert {name for name in watched if before.run_flags(name) != after.run_flags(name)} == rerun


def test_texts_and_probes_are_joined_from_shards_where_there_are_any():
    run = ("books", "shielded", "1")
    whole = Study(Config(), {})
    assert whole.text_parts(*run) == whole.answer_parts(*run) == whole.score_parts(*run) == {}
    made = study(resources={"shards": 2}, audit={"scorer": "./toxic-bert"})
    for inputs, folder in (
        (made.text_parts(*run), "rl/books/shielded/seed-1/texts"),
        (made.answer_parts(*run), "audit/books/shielded/seed-1/answers"),
        (made.score_parts(*run), "audit/books/shielded/seed-1/scores"),
    ):
        assert inputs == {
            "parts": [f"results/{folder}/shard-{shard}-of-2.json" for shard in (0, 1)]
        }
    # The embedded scorer takes seconds.
    assert study(resources={"shards": 2}).score_parts(*run) == {}
