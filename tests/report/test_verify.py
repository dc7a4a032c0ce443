"""Checking a folder against its manifest."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import audit_document
from shielded_recrl.audit import gate
from shielded_recrl.config import Config
from shielded_recrl.dialogue.manifest import manifest as dialogue_manifest
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report.manifest import manifest
from shielded_recrl.report.verify import check, main, read_manifest

FILES = {"a.csv": "one", "data/books/b.json": "two", "data/books/c.json": "three"}


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
    (results / "data/books/b.json").unlink()
    (results / "data/books/c.json").write_text("longer")
    (results / "data/new.json").write_text("new")
    (results / "logs").mkdir()
    (results / "logs/x.log").write_text("a log is no artefact")
    with pytest.raises(SystemExit) as caught:
        main(results)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a.csv: changed: SHA-256 ")
    assert lines[1] == "data/books/b.json: missing"
    assert lines[2] == "data/books/c.json: changed: 6 bytes, 5 listed"
    assert lines[3:] == ["data/new.json: not listed"]
    assert str(caught.value).endswith(
        "problems: 4; files listed in {}: 3".format(results / "manifest.json")
    )


def test_leftovers_are_verified_too(results):
    stray = results / "rl/books/mine/seed-1/evaluation.json"
    stray.parent.mkdir(parents=True)
    stray.write_text("{}")
    write_json(results / "manifest.json", manifest(results, Config(), results / "manifest.json"))
    assert [one["path"] for one in read_json(results / "manifest.json")["leftovers"]] == [
        "rl/books/mine/seed-1/evaluation.json"
    ]
    assert problems(results) == []
    stray.write_text("[]")
    assert len(problems(results)) == 1


@pytest.fixture
def judged(results):
    """The folder with a summary of audits and the verdict of the gate on it."""
    audit_document.summed_up(results / "audit", audit_document.audit())
    gate.main(audit=results / "audit/audit.json", out=results / "audit/passed")
    write_json(results / "manifest.json", manifest(results, Config(), results / "manifest.json"))
    return results


def test_the_verdict_of_the_gate_is_on_the_summary_that_is_listed(judged):
    assert problems(judged) == []
    (judged / "audit/passed").unlink()
    assert problems(judged) == []


@pytest.mark.parametrize(
    "verdict", ['{"audit": "00"}', '{"audit": null}', "{}", "[]", "{", "\udcff", None]
)
def test_any_other_verdict_is_found(judged, verdict):
    (judged / "audit/passed").unlink()
    if verdict is None:
        (judged / "audit/passed").mkdir()
    else:
        (judged / "audit/passed").write_text(verdict, errors="surrogateescape")
    assert problems(judged) == ["audit/passed: no verdict on the audit/audit.json that is listed"]


def test_a_verdict_on_no_summary_is_found(results):
    (results / "audit").mkdir()
    (results / "audit/passed").write_text('{"audit": null}')
    assert problems(results) == ["audit/passed: no verdict on the audit/audit.json that is listed"]


def test_the_report_is_said_not_to_be_covered(results, capsys):
    (results / "report").mkdir()
    (results / "report/report.html").write_text("<html>")
    main(results)
    assert capsys.readouterr().out.splitlines() == [
        "not covered: report/report.html",
        f"{results}: 3 files verified",
    ]


ODD = ["a\nb.json: fine", "\x1b[2Ka.csv", "a\u202ecsv", "a\x9b2K", "a\udcff"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_in_the_folder_are_quoted(results, name, capsys):
    (results / "new").mkdir()
    (results / "new" / name).write_text("x")
    with pytest.raises(SystemExit):
        main(results)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{'new/' + name!r}: not listed"
    assert line.isprintable()


@pytest.mark.parametrize("name", ODD)
def test_odd_names_in_a_manifest_are_refused(results, name):
    tampered(results, lambda document: document["artefacts"][1].update(path=name))
    with pytest.raises(UserError, match="cannot be printed") as caught:
        main(results)
    assert str(caught.value).isprintable()


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
    with pytest.raises(UserError, match=r"artefacts 1: .* is no path below the folder") as caught:
        main(results)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("artefacts"), "'artefacts' is no list"),
        (lambda d: d.pop("leftovers"), "'leftovers' is no list"),
        (
            lambda d: d["leftovers"].append(d["artefacts"][0]),
            "leftovers 0: 'a.csv' is listed twice",
        ),
        (lambda d: d.update(format=2), "no manifest of format 1"),
        (lambda d: d["artefacts"].append(d["artefacts"][0]), "listed twice"),
        (lambda d: d["artefacts"].append("a.csv"), "artefacts 3 is no object"),
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


@pytest.fixture
def branch(results):
    """The dialogue branch beside the study, with a manifest of its own."""
    folder = results / "dialogue"
    for path in ("data/turns.parquet", "rl/seed-42/evaluation.json", "report/comparison.html"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(path)
    out = folder / "report/manifest.json"
    write_json(out, dialogue_manifest(folder, Config(), out))
    return folder


def test_both_manifests_are_verified(results, branch, capsys):
    main(results)
    said = [f"{results}: 3 files verified", f"{branch}: 3 files verified"]
    assert capsys.readouterr().out.splitlines() == said


@given(name=st.sampled_from(["data/turns.parquet", "rl/seed-42/evaluation.json"]), data=st.data())
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_bit_in_the_branch_is_found(results, branch, name, data, capsys):
    path = branch / name
    before = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    flipped = bytearray(before)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    with pytest.raises(SystemExit, match=r"problems: 1; files listed in .*dialogue"):
        main(results)
    path.write_bytes(before)
    own, line = capsys.readouterr().out.splitlines()
    assert own == f"{results}: 3 files verified"
    assert line.startswith(f"dialogue/{name}: changed: SHA-256 ")


def test_problems_of_study_and_branch_are_told_together(results, branch, capsys):
    (results / "a.csv").unlink()
    (branch / "data/new.json").write_text("new")
    with pytest.raises(SystemExit) as caught:
        main(results)
    lines = ["a.csv: missing", "dialogue/data/new.json: not listed"]
    assert capsys.readouterr().out.splitlines() == lines
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{results}: problems: 1; ")
    assert second.startswith(f"{branch}: problems: 1; ")


def test_a_branch_alone_is_verified_and_the_rest_said_not_to_be_covered(results, branch, capsys):
    (results / "manifest.json").unlink()
    main(results)
    assert capsys.readouterr().out.splitlines() == [
        "not covered: the study, which has no manifest.json",
        f"{branch}: 3 files verified",
    ]
    for path in ("a.csv", "data/books/b.json", "data/books/c.json"):
        (results / path).unlink()
    main(results)
    assert capsys.readouterr().out == f"{branch}: 3 files verified\n"


def test_a_branch_that_has_not_run_to_its_end_is_said_not_to_be_covered(results, branch, capsys):
    (branch / "report/manifest.json").unlink()
    main(results)
    assert capsys.readouterr().out.splitlines() == [
        "not covered: dialogue, which has no dialogue/report/manifest.json",
        f"{results}: 3 files verified",
    ]


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
