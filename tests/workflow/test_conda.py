"""`--sdm conda` by a stand-in for conda on PATH: it makes folders, and notes which job ran in which.

What the environments hold is compared with imports and lock file in test_environments.py; here it is
that Snakemake makes one of each file, and starts every job in the environment of its rule.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEAM = {"study": [{"dataset": "steam", "variants": ["shielded"], "seeds": [1]}]}
TARGET = "results/data/steam/stats.json"
# All there is: the study, and the branch apart from it.
TARGETS = ("results/manifest.json", "results/dialogue/report/manifest.json")
# Triggers of profiles/runpod: all but the software environment.
TRIGGERS = ("--rerun-triggers", "mtime", "params", "input", "code")
CONDA = """#!/usr/bin/env bash
set -euo pipefail
case "$*" in
"--version") echo "conda 99.0.0" ;;
"info --json") echo '{{"conda_prefix": "{root}", "platform": "linux-64"}}' ;;
"config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
"clean -y --tarballs") ;;
"env create --quiet --no-default-packages --file "*)
    file=$6 prefix=${{8}}
    mkdir -p "$prefix/bin"
    cp "$file" "$prefix/environment.yaml"
    printf '#!/bin/sh\\necho "$CONDA_PREFIX $*" >>"{root}/log"\\nexec "{python}" "$@"\\n' >"$prefix/bin/python"
    chmod +x "$prefix/bin/python"
    ;;
*)
    echo "what is conda $*?" >&2
    exit 2
    ;;
esac
"""
ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'


class Conda(NamedTuple):
    """A copy of the repository, and the folder of the stand-in beside it."""

    copy: Any
    root: Path

    def run(self, *args: str) -> str:
        path = os.pathsep.join([str(self.root / "bin"), os.environ["PATH"]])
        done = self.copy.run(*args, "--sdm", "conda", changes=STEAM, environment={"PATH": path})
        return done.stdout + done.stderr

    def environments(self) -> dict[str, str]:
        """What was asked for in each environment, by its folder."""
        made = (self.copy.folder / ".snakemake/conda").glob("*/environment.yaml")
        return {str(path.parent): path.read_text() for path in made}

    def jobs(self) -> list[tuple[str, str, str]]:
        """File of the environment, stage and command of each job that ran, in order."""
        files = {
            text: path.stem for path in ROOT.glob("envs/*.yaml") for text in [path.read_text()]
        }
        found = []
        for line in (self.root / "log").read_text().splitlines():
            ran = re.match(r"(\S+) -m shielded_recrl\.(\w+) (\w+)", line)
            assert ran, line
            found.append((files[self.environments()[ran[1]]], ran[2], ran[3]))
        return found


@pytest.fixture(scope="module")
def conda(untouched, tmp_path_factory) -> Conda:
    folder = tmp_path_factory.mktemp("conda")
    binaries = folder / "conda/bin"
    binaries.mkdir(parents=True)
    text = CONDA.format(root=folder / "conda", python=sys.executable)
    (binaries / "conda").write_text(text)
    (binaries / "conda").chmod(0o755)
    (binaries / "activate").write_text(ACTIVATE)
    return Conda(untouched.pristine(folder / "copy"), folder / "conda")


def test_an_environment_is_made_of_each_file(conda):
    conda.run(*TARGETS, "--conda-create-envs-only")
    # Nothing of this study is downloaded.
    wanted = [path.read_text() for path in ROOT.glob("envs/*.yaml") if path.stem != "download"]
    assert sorted(conda.environments().values()) == sorted(wanted)
    assert not (conda.root / "log").exists(), "a job ran"


@pytest.fixture(scope="module")
def ran(conda) -> list[tuple[str, str, str]]:
    """The jobs of a run, in order."""
    conda.run(TARGET)
    return conda.jobs()


def test_jobs_run_in_the_environment_of_their_rule(conda, ran, tiny):
    assert ran == [("data", "data", "world"), ("data", "data", "prepare")]
    assert conda.copy.read(TARGET) == tiny.read(TARGET)


def test_what_is_finished_stays_so_with_conda_and_without(conda, ran):
    """The profiles leave the environment out of what reruns a job."""
    assert "Nothing to be done" in conda.run(TARGET, *TRIGGERS)
    assert conda.copy.plan(TARGET, *TRIGGERS, changes=STEAM).jobs.total() == 0
    assert conda.jobs() == ran
