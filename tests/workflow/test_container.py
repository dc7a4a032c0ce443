"""The pod's image and the image of the conda environments agree with the lock file and envs/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVS = sorted(ROOT.glob("envs/*.yaml"))
# All that Snakemake asks of conda before it prints a container: no environment is made.
CONDA = """\
#!/bin/sh
case "$*" in
"info --json") echo '{"conda_prefix": "/opt/conda", "platform": "linux-64"}' ;;
"--version") echo "conda 25.9.1" ;;
"config --get channel_priority --json") echo '{"get": {"channel_priority": "strict"}}' ;;
*) echo "conda $*: not expected" >&2; exit 1 ;;
esac
"""


def lint(*arguments, stdin=None):
    # The linter's executable lies beside the tests' Python.
    hadolint = Path(sys.executable).parent / "hadolint"
    return subprocess.run(
        [hadolint, "--no-color", *arguments], input=stdin, capture_output=True, text=True, cwd=ROOT
    )


class TestDockerfile:
    text = (ROOT / "Dockerfile").read_text()

    def test_is_lint_free(self):
        result = lint("Dockerfile")
        assert (result.returncode, result.stdout) == (0, "")

    def test_linter_sees_a_fault(self):
        result = lint("-", stdin="FROM python\nRUN cd /tmp && apt-get install git\n")
        assert result.returncode == 1
        assert "DL3006" in result.stdout

    def test_installs_the_lock_as_somebody(self):
        assert "--constraint requirements.lock --only-deps '.[quant,s3]'" in self.text
        installs = re.findall(r"pip install.*", self.text)
        assert all("--constraint requirements.lock" in line for line in installs)
        assert re.search(r"^ARG USER=study$", self.text, re.MULTILINE)
        assert re.findall(r"^USER (.+)$", self.text, re.MULTILINE) == ["${USER}"]

    def test_base_is_a_version_the_project_runs_on(self):
        assert re.search(r"^ARG BASE=python:3\.(11|12)-", self.text, re.MULTILINE)
        assert re.search(r"^FROM \$\{BASE\}$", self.text, re.MULTILINE)

    def test_context_is_what_it_copies(self):
        first, *allowed = (ROOT / ".dockerignore").read_text().split()
        (copied,) = re.findall(r"^COPY (.+) \./$", self.text, re.MULTILINE)
        assert first == "*"
        # The environments are for the other image, which is built in the same context.
        assert {line.removeprefix("!") for line in allowed} == {*copied.split(), "envs"}
        assert all((ROOT / name).is_file() for name in copied.split())


@pytest.fixture(scope="module")
def containerized(untouched, tmp_path_factory):
    """What `snakemake --containerize` prints."""
    folder = tmp_path_factory.mktemp("conda")
    (folder / "conda").write_text(CONDA)
    (folder / "conda").chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return untouched.run("--containerize", config=None, environment={"PATH": path}).stdout


@pytest.mark.slow
class TestContainerize:
    @pytest.mark.parametrize("path", ENVS, ids=lambda path: path.stem)
    def test_holds_the_environment_pin_by_pin(self, containerized, path):
        source = f"#   source: envs/{path.name}\n"
        assert containerized.count(source) == 1
        block = containerized.split(source)[1].split("\nRUN mkdir")[0]
        text = "".join(line.removeprefix("#   ") for line in block.splitlines(keepends=True)[1:])
        assert yaml.safe_load(text) == yaml.safe_load(path.read_text())

    def test_makes_each_environment_of_its_file(self, containerized):
        copied = dict(re.findall(r"^COPY (envs/\w+\.yaml) (.+)$", containerized, re.MULTILINE))
        assert sorted(copied) == [f"envs/{path.name}" for path in ENVS]
        for target in copied.values():
            prefix = target.removesuffix("/environment.yaml")
            assert f"conda env create --prefix {prefix} --file {target}" in containerized

    def test_is_a_dockerfile(self, containerized):
        # Its base is named by Snakemake, without a version.
        result = lint("--ignore", "DL3007", "-", stdin=containerized)
        assert (result.returncode, result.stdout) == (0, "")
