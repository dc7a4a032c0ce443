"""A job ends with the Snakemake that started it, and no sooner."""

import errno
import os
import subprocess
import sys

import pytest

from shielded_recrl.lifetime import SNAKEMAKE, announce, end_with_snakemake
from shielded_recrl.machine import prepare_environment

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"),
    reason="only Linux tells of the end of a process that is no child",
)
# What a job is for the test: it says that it watches, then waits until its input is closed.
JOB = """
import os, sys
from shielded_recrl.lifetime import end_with_snakemake
end_with_snakemake(os.environ)
print("at work", flush=True)
sys.stdin.read()
print("done", flush=True)
"""


@pytest.fixture
def snakemake():
    """A process that waits, in the place of Snakemake."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def start(owner: int | None) -> subprocess.Popen:
    environment = os.environ | ({} if owner is None else {SNAKEMAKE: str(owner)})
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", JOB], env=environment, text=True, **pipes)


def test_it_ends_when_snakemake_is_killed(snakemake):
    with start(snakemake.pid) as job:
        assert job.stdout.readline() == "at work\n"
        # Not even waited for: an ended process that nobody has asked about has ended all the same.
        snakemake.kill()
        assert job.wait(60) == 1
        assert job.stdout.read() == ""
        (line,) = job.stderr.read().splitlines()
    assert line.startswith("error: the Snakemake that started this job was killed")


def test_it_does_not_start_when_snakemake_is_gone(snakemake):
    snakemake.kill()
    snakemake.wait()
    with start(snakemake.pid) as job:
        out, error = job.communicate()
    assert (job.returncode, out) == (1, "")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("owned", [True, False])
def test_it_works_as_long_as_it_likes(snakemake, owned):
    with start(snakemake.pid if owned else None) as job:
        assert job.stdout.readline() == "at work\n"
        out, error = job.communicate()
    assert (job.returncode, out, error) == (0, "done\n", "")


def test_jobs_are_told_of_the_innermost_snakemake():
    """On a cluster it runs on the node, with what the outer one had in its environment."""
    environment = {SNAKEMAKE: "1"}
    prepare_environment(environment)
    told = {}
    announce(told)
    assert environment[SNAKEMAKE] == told[SNAKEMAKE] == str(os.getpid())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_the_kernel_refuses_the_job_works_on(monkeypatch, number):
    def refuse(pid):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    end_with_snakemake({SNAKEMAKE: str(os.getpid())})
