"""The manifest: what is listed, what it says of its making, and what it must not say."""

import getpass
import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.config import Config, load_config
from shielded_recrl.errors import UserError
from shielded_recrl.report.manifest import (
    artefact_paths,
    commit,
    gpu_models,
    is_inside,
    machine,
    main,
    manifest,
    stage_of,
    versions,
    without_absolute_paths,
)

LISTED = {
    "aggregate_results.csv": "report",
    "audit/audit.json": "audit",
    "data/books/stats.json": "data",
    "human/answers.csv": None,
    "ranker/books/logs/kept.txt": "ranker",
    "rl/books/shielded/seed-42/adapter/adapter_model.safetensors": "rl",
}
LEFT_OUT = [
    "audit/passed",
    "benchmarks/rl/x.tsv",
    "live/books/events",
    "logs/rl/x.log",
    "manifest.json",
    "report/report.html",
    "rl/books/shielded/seed-42/adapter/.snakemake_timestamp",
    "rl/books/.evaluation.json.12ab.partial",
    "rl/books/shielded/seed-42/texts/shard-1-of-2.json",
    "scratch/rl/state",
    "dialogue/data/turns.parquet",
    "shield/books/embedded/prompt-72/states/shard-0-of-2/index.json",
]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for path in [*LISTED, *LEFT_OUT]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"content of {path}\n")
    return folder


def test_every_artefact_is_listed_and_nothing_else(results):
    document = manifest(results, Config(), results / "manifest.json")
    assert {one["path"]: one["stage"] for one in document["artefacts"]} == LISTED
    assert [one["path"] for one in document["artefacts"]] == sorted(LISTED)
    for one in document["artefacts"]:
        content = (results / one["path"]).read_bytes()
        assert one["bytes"] == len(content)
        assert one["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_file_larger_than_a_piece_is_read_whole(tmp_path):
    content = os.urandom(3 * 2**20 + 17)
    (tmp_path / "model.safetensors").write_bytes(content)
    (one,) = manifest(tmp_path, Config(), tmp_path / "manifest.json")["artefacts"]
    assert (one["bytes"], one["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_folders_on_other_disks_are_followed_once(results, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.bin").write_text("weights")
    (results / "explainer").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(results)
    paths = artefact_paths(results, results / "manifest.json")
    assert paths == sorted([*LISTED, "explainer/model.bin"])


def test_of_several_ways_to_a_folder_the_first_by_name_is_taken(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "results"
    for one in (elsewhere, folder):
        one.mkdir()
    (elsewhere / "model.bin").write_text("weights")
    names = [f"link_{place:02}" for place in range(16)]
    for name in names:
        (folder / name).symlink_to(elsewhere)
    assert artefact_paths(folder, folder / "manifest.json") == ["link_00/model.bin"]


def test_leftovers_of_another_config_are_no_artefacts_of_this_study(results, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("study: [{dataset: books, variants: [shielded], seeds: [42]}]\n")
    left = [
        "audit/books/shielded/seed-4/audit.json",
        "audit/steam/shielded/seed-42/audit.json",
        "rl/books/kl0/seed-42/adapter/adapter_model.safetensors",
        "rl/books/kl0/seed-42/evaluation.json",
    ]
    for path in left:
        (results / path).parent.mkdir(parents=True, exist_ok=True)
        (results / path).write_text("old")
    main(results=results, config=config, out=results / "manifest.json")
    document = json.loads((results / "manifest.json").read_text())
    assert [one["path"] for one in document["artefacts"]] == sorted(LISTED)
    assert [one["path"] for one in document["leftovers"]] == left
    assert document["leftovers"][0]["sha256"] == hashlib.sha256(b"old").hexdigest()
    warning, counted = capsys.readouterr().out.splitlines()
    assert warning == (
        "warning: of no run of this config, listed as leftovers: audit/books/shielded/seed-4, "
        "audit/steam/shielded/seed-42, rl/books/kl0/seed-42"
    )
    assert "6 artefacts" in counted


@pytest.mark.parametrize("name", ["a\nb.csv", "\x1b[2Ka.csv", "a\u202eb.csv", "a\udcff.csv"])
def test_a_name_that_cannot_be_printed_is_refused_in_one_line(results, name):
    (results / name).write_text("x")
    with pytest.raises(UserError, match="cannot be printed; rename or remove it") as caught:
        manifest(results, Config(), results / "manifest.json")
    assert str(caught.value).isprintable()


def test_the_command_gives_equal_bytes_and_names_neither_host_nor_user_nor_place(
    results, tmp_path, capsys
):
    config = tmp_path / "config.yaml"
    source = tmp_path / "private" / "steam-200k.csv"
    config.write_text(
        f"seed: 7\ndatasets: {{steam: {{source: {source}}}, books: {{}}}}\n"
        "study:\n- {dataset: steam, variants: [shielded], seeds: [44, 42]}\n"
        "- {dataset: books, variants: [shielded], seeds: [42]}\n"
    )
    out = results / "manifest.json"
    texts = []
    for _ in range(2):
        main(results=results, config=config, out=out)
        texts.append(out.read_text())
    text = texts[0]
    assert texts == [text] * 2
    assert "6 artefacts" in capsys.readouterr().out
    document = json.loads(text)
    assert document["config"]["datasets"]["steam"]["source"] == "steam-200k.csv"
    assert document["config_paths_shortened"] == ["datasets.steam.source"]
    assert document["seeds"] == {"config": 7, "runs": [42, 44]}
    assert str(tmp_path) not in text
    about = {key: document[key] for key in ("written_by", "threads", "seeds")}
    words = json.dumps(about).replace('"', " ").split()
    assert not {socket.gethostname(), getpass.getuser(), os.getcwd()} & set(words)


def test_the_config_in_it_is_the_whole_one(results):
    document = manifest(results, Config(seed=9), results / "manifest.json")
    assert load_config(document["config"]) == Config(seed=9)
    assert "resources" not in document["config"]


def test_threads_are_those_given_or_those_of_the_config(results):
    config = load_config({"resources": {"threads": 3}})
    out = results / "manifest.json"
    assert manifest(results, config, out)["threads"] == 3
    assert manifest(results, config, out, threads=8)["threads"] == 8


def test_what_wrote_the_manifest_is_not_said_to_have_made_the_results(results):
    document = manifest(results, Config(), results / "manifest.json")
    assert document["written_by"] == {"versions": versions(), "machine": machine()}
    assert not {"versions", "machine"} & document.keys()


def test_versions_are_those_installed():
    import numpy

    found = versions()
    assert found["numpy"] == numpy.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(found[name] for name in ("torch", "transformers", "peft", "snakemake"))


def test_the_commit_is_that_of_the_library_and_tells_of_changes(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    library = tmp_path / "workflow" / "library"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("")
    assert commit(library) is None
    git("init")
    assert commit(library) is None
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/rl.smk").write_text("rule a:\n")
    (tmp_path / ".gitignore").write_text("resources/raw/\n")
    git("add", ".")
    git("commit", "-m", "first")
    assert commit(library) == git("rev-parse", "HEAD")
    clean = git("rev-parse", "HEAD")
    git("config", "status.showUntrackedFiles", "no")
    for path in ("notes.txt", "resources/raw/ratings.csv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("nothing that decides a result")
        assert commit(library) == clean
    for path in (
        *("workflow/library/__init__.py", "workflow/library/new.py", "rules/rl.smk", "Snakefile"),
        *("config/config.yaml", "resources/policy.yaml", "envs/rl.yaml"),
    ):
        old = (tmp_path / path).read_text() if (tmp_path / path).exists() else None
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("changed = True\n")
        assert commit(library) == f"{clean}+changes", path
        (tmp_path / path).unlink() if old is None else (tmp_path / path).write_text(old)
        assert commit(library) == clean


def test_models_of_gpus_are_read_from_the_driver(tmp_path):
    assert gpu_models(tmp_path) == []
    for place, model in (("0000:01:00.0", "NVIDIA H200"), ("0000:02:00.0", "NVIDIA L4")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "information").write_text(f"Model: \t\t {model}\nIRQ:   1\n")
    assert gpu_models(tmp_path) == ["NVIDIA H200", "NVIDIA L4"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no readable config"),
        ("{", "no readable config"),
        ("- 1\n", "expected a mapping"),
        ("sead: 1\n", "sead: unknown key"),
    ],
)
def test_a_bad_config_is_one_line(results, tmp_path, content, said):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        main(results=results, config=path, out=results / "manifest.json")
    assert "\n" not in str(caught.value)


def test_results_have_to_be_a_folder(tmp_path):
    (tmp_path / "c").write_text("{}")
    with pytest.raises(UserError, match="no such folder"):
        main(results=tmp_path / "no", config=tmp_path / "c", out=tmp_path / "m.json")


def test_absolute_paths_are_cut_wherever_they_stand():
    value = {"a": ["/x/y.csv", "z"], "b": {"c": "~/m/base"}, "d": "C:\\data\\f.csv", "e": "./base"}
    assert without_absolute_paths(value) == (
        {"a": ["y.csv", "z"], "b": {"c": "base"}, "d": "f.csv", "e": "./base"},
        ["a.0", "b.c", "d"],
    )


@given(st.text(max_size=20))
def test_a_path_that_stays_inside_never_leaves(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp().resolve()
    if is_inside(text):
        assert os.path.normpath(root / text).startswith(f"{root}{os.sep}")


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/a", "a/../../b", "../a", "a//b", "a/", "./a", "a\\..\\b", "a\0b"]
)
def test_paths_that_lead_elsewhere_or_have_another_form(path):
    assert not is_inside(path)


def test_a_path_of_no_stage_has_none():
    assert stage_of("human/answers.csv") is None
    assert stage_of("shield/books/bases.safetensors") == "shield"
