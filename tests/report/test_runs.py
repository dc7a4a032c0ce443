"""Runs are read in the order of the study, and what is wrong with a file is said in one line."""

import shutil

import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report.runs import load_runs, read_summary


def keys(runs):
    return [(run.dataset, run.variant, run.seed) for run in runs]


def test_sorted_by_dataset_then_variant_as_given_then_seed(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    expected = [
        *(("books", "no_proj", seed) for seed in (42, 43, 44)),
        *(("books", "shielded", seed) for seed in (42, 43, 44)),
        ("books", "kl0", 42),
        ("books", "lora4", 42),
        ("books", "long_expl", 42),
        *(("ml25m", variant, seed) for variant in ("no_proj", "shielded") for seed in (42, 43)),
        *(("steam", variant, 42) for variant in ("no_proj", "shielded")),
    ]
    assert keys(runs) == expected


def test_audits_find_their_runs_whatever_the_order(study):
    runs = load_runs(study.runs, study.audits[::-1], study.stats[::-1])
    for run in runs:
        place = study.runs.index(run.folder)
        assert run.audit == read_json(study.audits[place])
        assert run.stats["dataset"] == run.dataset


def edit(path, **changes):
    write_json(path, {**read_json(path), **changes})


def without_kl(path):
    curve = [{k: v for k, v in point.items() if k != "kl"} for point in read_json(path)["curve"]]
    edit(path, curve=curve)


def cut(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: (s.runs[0] / "evaluation.json").unlink(), "evaluation.json: cannot be read"),
        (lambda s: (s.runs[0] / "certificate.json").unlink(), "certificate.json: cannot be read"),
        (lambda s: edit(s.runs[0] / "certificate.json", heldout=None), "'max_score_change' is mis"),
        (lambda s: edit(s.runs[0] / "evaluation.json", drift={}), "'protected' is missing"),
        (
            lambda s: shutil.copy(s.runs[1] / "certificate.json", s.runs[0] / "certificate.json"),
            "certificate.json: max_score_change of protected users is",
        ),
        (lambda s: (s.runs[0] / "rankings.parquet").unlink(), "rankings.parquet: cannot be read"),
        (lambda s: (s.runs[0] / "summary.json").write_text("{"), "summary.json: not valid JSON"),
        (lambda s: (s.runs[0] / "summary.json").write_text("[]"), "expected a JSON object"),
        (lambda s: edit(s.runs[0] / "summary.json", seed=7), "summary.json: seed is 7, but 42 in"),
        (lambda s: cut(s.runs[0] / "train.jsonl"), "train.jsonl: 23 rows, but summary.json tells"),
        (lambda s: (s.runs[0] / "train.jsonl").write_text("{}\n{"), "train.jsonl, line 2: not"),
        (lambda s: edit(s.runs[0] / "evaluation.json", curve=[{"step": 0}]), "'curve' needs"),
        (lambda s: edit(s.runs[0] / "evaluation.json", curve=None), "'curve' needs"),
        (lambda s: without_kl(s.runs[0] / "evaluation.json"), "'curve' needs points with numbers"),
        (lambda s: s.audits[0].unlink(), "audit.json: cannot be read"),
        (lambda s: edit(s.audits[0], inputs={}), "none of the audits was made from its expl"),
        (lambda s: edit(s.audits[0], inputs="x"), "audit.json: 'inputs' is no JSON object"),
        (
            lambda s: (s.runs[0] / "explanations.jsonl").write_text("other"),
            "none of the audits was made from its explanations.jsonl",
        ),
        (lambda s: s.stats.pop(), "no statistics of dataset 'steam'"),
        (lambda s: edit(s.stats[0], dataset="steam", users=1), "contradicts another file"),
    ],
)
def test_bad_files_are_named(study, spoil, message):
    spoil(study)
    with pytest.raises(UserError) as error:
        load_runs(study.runs, study.audits, study.stats)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_run_twice_is_refused(study, tmp_path):
    copy = shutil.copytree(study.runs[3], tmp_path / "copy")
    with pytest.raises(UserError, match=r"copy: the same dataset, variant and seed as"):
        load_runs([*study.runs, copy], study.audits, study.stats)


def test_a_summary_is_read_as_it_was_written(study):
    assert read_summary(study.summary) == read_json(study.summary)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: p.write_text("{"), "not valid JSON"),
        (lambda p: p.write_text("[]"), "expected a JSON object"),
        (
            lambda p: p.write_text("{}"),
            "no summary of audits; make it again with `audit summarise`",
        ),
        (lambda p: edit(p, policy=["lines", "variants"]), "no summary of audits"),
        (lambda p: edit(p, policy={"lines": {}}), "no summary of audits"),
        (lambda p: edit(p, runs={}), "no summary of audits"),
        (lambda p: edit(p, runs=[{"dataset": "books"}]), "no summary of audits"),
    ],
)
def test_a_summary_that_is_none_is_named(study, spoil, message):
    spoil(study.summary)
    with pytest.raises(UserError) as error:
        read_summary(study.summary)
    assert str(error.value).startswith(f"{study.summary}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
