"""Profiles hold what Snakemake knows, plan what they promise, and a bare pod is set up by one command."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROFILES = sorted(path.parent.name for path in ROOT.glob("profiles/*/config.yaml"))


def profile(name):
    return yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text())


@pytest.fixture(scope="module")
def options():
    """Every long option of Snakemake and its plugins."""
    from snakemake.cli import get_argument_parser

    parser = get_argument_parser(profiles=None)
    return {
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


@pytest.mark.parametrize("name", PROFILES)
class TestProfile:
    def test_keys_are_options_of_snakemake(self, options, name):
        assert {key.replace("_", "-") for key in profile(name)} - options == set()

    def test_configs_it_names_are_there(self, name):
        for path in profile(name).get("configfile", []):
            assert (ROOT / path).is_file()


# A profile of a storage alone is laid over one of these.
@pytest.mark.parametrize("name", [p for p in PROFILES if {"cores", "executor"} & profile(p).keys()])
class TestWhereJobsRun:
    def test_conda_can_be_switched_on_without_a_rerun(self, name):
        triggers = profile(name)["rerun-triggers"]
        assert sorted(triggers) == ["code", "input", "mtime", "params"]

    def test_a_fault_stops_neither_the_others_nor_the_next_start(self, name):
        assert profile(name)["retries"] >= 1
        assert profile(name)["keep-going"] is profile(name)["rerun-incomplete"] is True
        assert "keep-incomplete" not in profile(name)


def test_no_profile_loads_by_itself():
    assert "default" not in PROFILES


def test_gpu_cap():
    assert profile("runpod")["cores"] == profile("local6g")["cores"] == "all"
    # Without one in the profile, it is the number of GPUs of the pod.
    assert "resources" not in profile("runpod")
    assert profile("local6g")["resources"] == ["gpu=1"]


@pytest.mark.slow
class TestDryRun:
    def test_six_gigabytes(self, untouched):
        plan = untouched.plan("--profile", "profiles/local6g", config=None)
        assert plan.rules["train_policy"] == 6
        assert plan.rules["fetch"] == plan.rules["download"] == 1
        assert "pretrain" not in plan.rules

    def test_two_gpus_share_a_training(self, untouched):
        two = ("--profile", "runpod", "--config", "resources={gpu: 2}", "--printshellcmds")
        result = untouched.run("-n", *two, config=None)
        commands = re.findall(r"--nproc_per_node (\d+)", result.stdout + result.stderr)
        assert commands == ["2"] * 21


@pytest.fixture
def pod(tmp_path):
    """A bare pod: the files of the set-up, and a Python that notes what is asked of it.

    `python -m venv` makes a folder whose python is the same script; packages are not installed.
    """
    folder = tmp_path / "pod"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {folder}/calls\n'
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    python.chmod(0o755)
    return folder


def make(folder, *arguments):
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )


def state(folder):
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


class TestPodSetup:
    def test_installs_the_lock_with_four_bits(self, pod):
        result = make(pod, "pod-setup", f"PYTHON={pod}/python")
        assert result.returncode == 0, result.stderr
        calls = (pod / "calls").read_text()
        assert "--constraint requirements.lock --editable .[quant]" in calls
        installs = [line for line in calls.splitlines() if "pip install" in line]
        assert installs
        assert all("--constraint requirements.lock" in line for line in installs)
        assert (pod / ".cache/huggingface").is_dir()
        assert "snakemake --profile runpod" in result.stdout

    def test_second_call_changes_nothing(self, pod):
        make(pod, "pod-setup", f"PYTHON={pod}/python")
        before = state(pod)
        result = make(pod, "pod-setup", f"PYTHON={pod}/python")
        assert result.returncode == 0
        assert state(pod) == before

    def test_torch_for_another_cuda(self, pod):
        make(pod, "pod-setup", f"PYTHON={pod}/python", "TORCH_INDEX=https://example.org/cu126")
        assert "--extra-index-url https://example.org/cu126 torch" in (pod / "calls").read_text()

    def test_python_that_is_too_old_is_refused(self, pod):
        (pod / "python").write_text("#!/bin/sh\necho 'Python 3.11 or 3.12 is needed' >&2\nexit 1\n")
        result = make(pod, "pod-setup", f"PYTHON={pod}/python")
        assert result.returncode != 0
        assert not (pod / ".venv").exists()
        assert not (pod / ".cache").exists()


class TestHelp:
    def test_every_target_for_people_is_listed(self):
        text = (ROOT / "Makefile").read_text()
        phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split()
        listed = [line.split()[0] for line in make(ROOT, "help").stdout.splitlines()]
        assert sorted(listed) == sorted(phony)

    def test_names_stay_clear_of_what_they_do(self):
        for line in make(ROOT, "help").stdout.splitlines():
            assert re.match(r"[a-z_-]+ +\w", line)

    @pytest.mark.parametrize(
        ("arguments", "command"),
        [
            (["doctor"], "cluster doctor --config config/full.yaml"),
            (["doctor", "CONFIG=config/local6g.yaml"], "doctor --config config/local6g.yaml"),
            (["pack"], "cluster pack\n"),
            (["pack", "DATASET=books"], "cluster pack --dataset books"),
            (["pack", "DATASET=books steam"], "cluster pack --dataset books steam"),
            (["unpack"], "cluster unpack packs/*.tar"),
            (["unpack", "DATASET=books"], "cluster unpack packs/books.tar"),
        ],
    )
    def test_targets_run_the_commands(self, arguments, command):
        assert command in make(ROOT, "-n", *arguments).stdout
