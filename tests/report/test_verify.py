"""Checking a folder against its manifest."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shielded_recrl.config import Config
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report.manifest import manifest
from shielded_recrl.report.verify import check, main, read_manifest

FILES = {"a.csv": "one", "rl/books/b.json": "two", "rl/books/c.json": "three"}


@pytest.fixture
def results(tmp_path):
    """A folder with its manifest."""
    folder = tmp_path / "results"
    for path, text in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    write_json(folder / "manifest.json", manifest(folder, Config(), folder / "manifest.json"))
    return folder


def problems(folder):
    path = folder / "manifest.json"
    return check(folder, read_manifest(path), path)


def test_an_untouched_folder_is_verified(results, capsys):
    assert problems(results) == []
    main(results)
    assert capsys.readouterr().out == f"{results}: 3 files verified\n"


def test_a_moved_folder_is_verified_too(results, tmp_path):
    assert problems(results.rename(tmp_path / "copy")) == []


def test_every_kind_of_difference_is_one_line(results, capsys):
    (results / "a.csv").write_text("onE")
    (results / "rl/books/b.json").unlink()
    (results / "rl/books/c.json").write_text("longer")
    (results / "rl/new.json").write_text("new")
    (results / "logs").mkdir()
    (results / "logs/x.log").write_text("a log is no artefact")
    with pytest.raises(SystemExit) as caught:
        main(results)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a.csv: changed: SHA-256 ")
    assert lines[1] == "rl/books/b.json: missing"
    assert lines[2] == "rl/books/c.json: changed: 6 bytes, 5 listed"
    assert lines[3:] == ["rl/new.json: not listed"]
    assert str(caught.value).endswith(
        "problems: 4; files listed in {}: 3".format(results / "manifest.json")
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(sorted(FILES)), content=st.binary(max_size=12))
def test_any_other_content_is_found(results, name, content):
    path = results / name
    before = path.read_bytes()
    path.write_bytes(content)
    assert bool(problems(results)) == (content != before)
    path.write_bytes(before)


def test_a_folder_in_the_place_of_a_file_is_a_missing_file(results):
    (results / "a.csv").unlink()
    (results / "a.csv").mkdir()
    assert problems(results) == ["a.csv: missing"]


def tampered(results, change):
    document = read_json(results / "manifest.json")
    change(document)
    write_json(results / "manifest.json", document)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "rl/../../secret", "", 3, None])
def test_paths_that_lead_out_are_refused(results, path):
    tampered(results, lambda document: document["artefacts"][1].update(path=path))
    with pytest.raises(UserError, match=r"artefact 1: .* is no path below the folder") as caught:
        main(results)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("artefacts"), "'artefacts' is no list"),
        (lambda d: d.update(format=2), "no manifest of format 1"),
        (lambda d: d["artefacts"].append(d["artefacts"][0]), "listed twice"),
        (lambda d: d["artefacts"].append("a.csv"), "artefact 3 is no object"),
        (lambda d: d["artefacts"][0].update(bytes=-1), "'bytes' is -1"),
        (lambda d: d["artefacts"][0].update(bytes=True), "'bytes' is True"),
        (lambda d: d["artefacts"][0].update(sha256="ab"), "'sha256' is 'ab'"),
    ],
)
def test_a_damaged_manifest_is_one_line(results, change, said):
    tampered(results, change)
    with pytest.raises(UserError, match=said) as caught:
        main(results)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff"])
def test_a_manifest_that_is_none(results, content):
    (results / "manifest.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"manifest\.json: (not valid JSON|no manifest)"):
        main(results)


def test_a_folder_without_a_manifest_and_a_manifest_without_its_folder(results, tmp_path):
    with pytest.raises(UserError, match="make it with `report manifest`"):
        main(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        main(tmp_path / "no", manifest=results / "manifest.json")


def test_a_manifest_can_lie_elsewhere(results, tmp_path, capsys):
    elsewhere = (results / "manifest.json").rename(tmp_path / "kept.json")
    main(results, manifest=elsewhere)
    assert "3 files verified" in capsys.readouterr().out


def test_as_a_command_of_its_own(results):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "shielded_recrl.report.verify", *arguments],
            capture_output=True,
            text=True,
        )

    good = run(str(results))
    assert (good.returncode, good.stdout) == (0, f"{results}: 3 files verified\n")
    assert "Traceback" not in good.stderr
    (results / "a.csv").unlink()
    bad = run(str(results))
    assert (bad.returncode, bad.stdout) == (1, "a.csv: missing\n")
    (results / "manifest.json").write_text("{")
    damaged = run(str(results))
    assert damaged.returncode == 1
    assert len(damaged.stderr.splitlines()) == 1
    assert "not valid JSON" in damaged.stderr
