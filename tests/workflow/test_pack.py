"""A study that moves to another machine goes on there: what was finished is not made again."""

import os
import re

import pytest

from shielded_recrl.cluster import pack, unpack
from shielded_recrl.files import sha256
from shielded_recrl.report.verify import check, read_manifest

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tiny, tmp_path):
    """A clone elsewhere: every file is newer than the results."""
    copy = tiny.pristine(tmp_path / "clone")
    for path in copy.folder.rglob("*"):
        os.utime(path, follow_symlinks=False)
    return copy


def test_finished_stages_do_not_run_again_and_the_rest_does(tiny, clone, tmp_path):
    pack.main(folder=tiny.folder, out=tmp_path / "early", dataset=("books",), runs=False)
    pack.main(folder=tiny.folder, out=tmp_path / "all")
    early, late = tmp_path / "early/books.tar", tmp_path / "all"

    unpack.main((early, late / "steam.tar"), folder=clone.folder)
    left = clone.plan()
    before_runs = {
        rule
        for stage in pack.BEFORE_RUNS
        for rule in re.findall(r"^rule (\w+):", clone.read(f"rules/{stage}.smk"), re.MULTILINE)
    }
    assert {"prepare", "train_ranker", "pretrain", "collect_bases"} <= before_runs
    assert left.rules.keys() & before_runs == set()
    assert left.rules["train_policy"] == 2
    assert [job for job in left.jobs if "steam" in job] == []

    unpack.main(tuple(sorted(late.iterdir())), folder=clone.folder)
    assert not clone.plan().jobs
    results = clone.folder / "results"
    assert check(results, read_manifest(results / "manifest.json"), results / "manifest.json") == []
    table = "results/aggregate_results.csv"
    assert sha256(clone.folder / table) == sha256(tiny.folder / table)
