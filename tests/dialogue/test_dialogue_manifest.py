"""The manifest of the dialogue branch."""

import json

import pytest

from shielded_recrl.dialogue.manifest import main
from shielded_recrl.errors import UserError

LISTED = [
    "data/turns.parquet",
    "raw/goemotions/train.tsv",
    "report/comparison.html",
    "response/base/model.safetensors",
    "rl/seed-1/adapter/adapter_model.safetensors",
    "rl/seed-1/evaluation.json",
]
LEFT = ["rl/seed-12/adapter/adapter_model.safetensors", "rl/seed-12/evaluation.json"]


@pytest.fixture
def branch(tmp_path):
    """Results of the branch with a run of another config, and its config."""
    folder = tmp_path / "results/dialogue"
    for path in (*LISTED, *LEFT, "response/base/.snakemake_timestamp"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    config = tmp_path / "config.yaml"
    config.write_text("dialogue: {seeds: [1, 1], data: {genres: /home/me/movies.csv}}\nseed: 7\n")
    return folder, config


def test_lists_the_branch_and_what_decided_it(branch, capsys):
    folder, config = branch
    out = folder / "report/manifest.json"
    main(results=folder, config=config, out=out, threads=2)
    document = json.loads(out.read_text())
    assert [one["path"] for one in document["artefacts"]] == LISTED
    assert [one["path"] for one in document["leftovers"]] == LEFT
    stages = {one["stage"] for one in (*document["artefacts"], *document["leftovers"])}
    assert stages == {"dialogue"}
    assert document["seeds"] == {"config": 7, "runs": [1]}
    assert document["threads"] == 2
    assert document["config"].keys() == {"seed", "dialogue"}
    assert document["config"]["dialogue"]["data"]["genres"] == "movies.csv"
    assert document["config_paths_shortened"] == ["dialogue.data.genres"]
    warning, counted = capsys.readouterr().out.splitlines()
    assert warning == "warning: of no run of this config, listed as leftovers: rl/seed-12"
    assert "6 artefacts" in counted


def test_is_the_same_twice_and_does_not_list_itself(branch):
    folder, config = branch
    out = folder / "report/manifest.json"
    main(results=folder, config=config, out=out)
    first = out.read_bytes()
    main(results=folder, config=config, out=out)
    assert out.read_bytes() == first


def test_a_missing_folder_is_one_line(branch, tmp_path):
    _, config = branch
    with pytest.raises(UserError, match="no such folder; give the folder of results"):
        main(results=tmp_path / "none", config=config, out=tmp_path / "manifest.json")
    assert not (tmp_path / "manifest.json").exists()
