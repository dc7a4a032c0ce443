"""What jobs may take: on one machine no more GPUs than it has, on a cluster what they ask for."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCAL = re.search(
    r"^localrules:\n((?:    \w+,\n)+)", (ROOT / "Snakefile").read_text(), re.MULTILINE
)
RULES = {
    name: text
    for path in ROOT.glob("rules/*.smk")
    for name, text in re.findall(
        r"^rule (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL
    )
}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_job_asks_for_memory_that_grows_and_for_time(rule):
    assert "mem_mb=grown(" in RULES[rule]
    assert ("runtime=" in RULES[rule]) == (f"    {rule},\n" not in LOCAL[1])


@pytest.mark.slow
def test_gpus_of_this_machine_limit_it_and_not_a_cluster(clean):
    clean.edit("workflow/shielded_recrl/machine.py", 'Path("/dev")', 'Path("dev")')
    (clean.folder / "dev").mkdir()
    (clean.folder / "dev/nvidia0").touch()

    def ranks(*args):
        told = clean.run(
            *("-n", "-p", *args, "results/rl/steam/shielded/seed-1/summary.json"),
            changes={"resources": {"gpu": 4}},
            environment={"CUDA_VISIBLE_DEVICES": "0"},
        )
        return re.findall(r"--nproc_per_node (\d+)", told.stdout + told.stderr)

    assert ranks() == ["1"]
    assert ranks("--profile", "profiles/slurm") == ["4"]
