"""Inputs and flags of the dialogue branch."""

from pathlib import Path

import pytest
import yaml

from shielded_recrl.config import load_config
from shielded_recrl.dialogue.study import DialogueStudy
from shielded_recrl.errors import UserError
from shielded_recrl.study import Study

HUB, COMMIT = "org/lm", "0" * 40
ROOT = Path(__file__).resolve().parents[2]
DOWNLOADS = yaml.safe_load((ROOT / "resources/checksums.yaml").read_text())


def branch(**dialogue):
    config = load_config({"dialogue": dialogue})
    return DialogueStudy(config.dialogue, Study(config, DOWNLOADS))


def test_embedded_world_has_its_own_categories():
    study = branch()
    assert study.raw_inputs() == {"raw": "results/dialogue/raw"}
    flags = study.prepare_flags({"raw": "bucket/results/dialogue/raw"})
    assert flags.startswith("--raw bucket/results/dialogue/raw --train train_data.jsonl ")
    assert "--genres bucket/results/dialogue/raw/movies.csv --synthetic True" in flags


def test_published_files_are_downloaded():
    study = branch(data={"source": "download"}, emotions={"goemotions": "download"})
    zipped = "resources/raw/redial/redial_dataset.zip"
    assert study.raw_inputs() == {"raw": zipped}
    assert f"--raw {zipped} " in study.prepare_flags({"raw": zipped})
    files = [f"resources/raw/goemotions/{name}.tsv" for name in ("train", "dev", "test")]
    assert study.comment_inputs() == files
    assert study.comment_folder(files) == "resources/raw/goemotions"
    assert {zipped, *files} <= study.study.fetched


def test_files_of_the_users_own(tmp_path):
    (tmp_path / "train.tsv.gz").touch()
    (tmp_path / "notes.tsv").touch()
    given = {"source": "my dialogues", "train": ["a.jsonl"], "genres": "ml/movies.csv"}
    study = branch(data=given, emotions={"goemotions": str(tmp_path)})
    names = ("a.jsonl", "test_data.jsonl", "movies_with_mentions.csv")
    files = [f"my dialogues/{name}" for name in names]
    assert study.raw_inputs() == {"files": files, "genres": "ml/movies.csv"}
    flags = study.prepare_flags({"files": files, "genres": "ml/movies.csv"})
    assert "--raw 'my dialogues' --train a.jsonl " in flags
    assert "--genres ml/movies.csv --synthetic False" in flags
    assert study.comment_inputs() == [str(tmp_path / "train.tsv.gz")]
    assert study.comment_folder(study.comment_inputs()) == str(tmp_path)


def test_files_in_a_bucket():
    given = {"source": "s3://raw/redial/", "train": ["sub/a.jsonl"], "test": ["/data/b.jsonl"]}
    given |= {"genres": "s3://ml/movies.csv"}
    study = branch(data=given, emotions={"goemotions": "s3://raw/goemotions"})
    files = ["s3://raw/redial/sub/a.jsonl", "/data/b.jsonl"]
    files.append("s3://raw/redial/movies_with_mentions.csv")
    assert study.raw_inputs() == {"files": files, "genres": "s3://ml/movies.csv"}
    copies = [path.replace("s3://", ".snakemake/storage/s3/") for path in files]
    flags = study.prepare_flags({"files": copies, "genres": ".snakemake/storage/s3/ml/movies.csv"})
    assert flags.startswith(
        "--raw .snakemake/storage/s3/raw/redial --train sub/a.jsonl --test /data/b.jsonl "
    )
    assert "--genres .snakemake/storage/s3/ml/movies.csv --synthetic False" in flags
    comments = [f"s3://raw/goemotions/{part}.tsv" for part in ("train", "dev", "test")]
    assert study.comment_inputs() == comments
    copies = [path.replace("s3://", "copies/") for path in comments]
    assert study.comment_folder(copies) == "copies/raw/goemotions"


def test_a_zip_in_a_bucket():
    zipped = "s3://raw/redial_dataset.zip"
    study = branch(data={"source": zipped}, emotions={"source": "lexicon"})
    assert study.raw_inputs() == {"raw": zipped}
    assert study.prepare_flags({"raw": "copies/redial.zip"}).startswith("--raw copies/redial.zip ")


@pytest.mark.parametrize(
    ("source", "name", "raw"), [(".", "a.jsonl", "."), ("/", "a.jsonl", "/"), ("x", "../a", "x")]
)
def test_the_folder_of_raw_files_is_the_one_given(source, name, raw):
    data = {"source": source, "train": [name]}
    study = branch(data=data, emotions={"source": "lexicon"})
    assert study.prepare_flags(study.raw_inputs()).startswith(f"--raw {raw} --train {name} ")


@pytest.mark.parametrize(
    "emotions", [{"goemotions": "download"}, {"goemotions": "folder"}, {"source": "lexicon"}]
)
def test_generated_comments_never_teach_the_emotions_of_real_dialogues(emotions):
    data = {"source": "redial"}
    assert branch(data=data, emotions=emotions).settings.data.source == "redial"
    assert branch(emotions=emotions).settings.data.source == "embedded"
    with pytest.raises(UserError, match="generated comments") as error:
        branch(data=data)
    said = str(error.value)
    assert "\n" not in said
    keys = ("dialogue.data.source", "dialogue.emotions.goemotions", "dialogue.emotions.source")
    assert all(key in said for key in keys)


def test_a_word_list_needs_no_classifier():
    assert branch().emotion_inputs() == {"model": "results/dialogue/emotion/model.safetensors"}
    assert branch(emotions={"source": "lexicon"}).emotion_inputs() == {}


@pytest.mark.parametrize(
    ("name", "folder"),
    [("embedded", "results/dialogue/response/base"), (HUB, "resources/models/org--lm")],
)
def test_base_that_a_rule_makes(name, folder):
    study = branch(response={"base": name, "revision": COMMIT if name == HUB else None})
    assert study.base_folder() == folder
    assert study.model_inputs(folder) == [folder]
    assert study.revisions() == ({"org--lm": COMMIT} if name == HUB else {})


def test_models_of_the_users_own_are_used_in_place(tmp_path):
    (tmp_path / "config.json").touch()
    study = branch(response={"base": str(tmp_path)}, critic={"encoder": str(tmp_path)})
    assert study.base_folder() == study.encoder_folder() == str(tmp_path)
    assert study.model_inputs(str(tmp_path)) == [str(tmp_path / "config.json")]
    assert branch().encoder_folder() is None
    assert branch().model_inputs(None) == []
