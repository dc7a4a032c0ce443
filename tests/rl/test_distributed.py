"""Ranks on gloo: two processes make the updates of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_ppo
from shielded_recrl.files import read_json, read_jsonl
from shielded_recrl.rl.distributed import Ranks, join
from shielded_recrl.rl.settings import RLSettings
from shielded_recrl.settings import flags
from shielded_recrl.shield.settings import ShieldSettings
from tiny_ppo import CLOSE, SHARED_RUNS, make_ppo, train_on, weights

TESTS = Path(__file__).resolve().parents[1]


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess:
    """A command as torchrun starts it, one thread each."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(processes), *words),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=TESTS,
    )


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    """Mixed lengths, mini batches, a rank without rows in them, a shield with a penalty, a steered
    coefficient, either critic."""
    done = subprocess.run(
        [sys.executable, tiny_ppo.__file__, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for mini_batches, critic in SHARED_RUNS:
        alone, rows = train_on(Ranks(), mini_batches, critic)
        assert rows[0]["tokens"] not in (1, 6)
        files = [tmp_path / f"{mini_batches}-{critic}-{rank}" for rank in range(2)]
        ranks = [load_file(file.with_suffix(".safetensors")) for file in files]
        for name, weight in weights(alone).items():
            torch.testing.assert_close(ranks[0][name], weight, atol=CLOSE, rtol=0)
            assert torch.equal(ranks[0][name], ranks[1][name])
        logs = [read_json(file.with_suffix(".json")) for file in files]
        assert logs[0] == logs[1]
        for row, shared in zip(rows, logs[0], strict=True):
            assert shared == pytest.approx(row, abs=CLOSE, rel=1e-4)
    for rank in range(2):
        agreed = load_file(tmp_path / f"agreed-{rank}.safetensors")
        assert torch.equal(agreed["a"], torch.full((2, 3), 0.1))
        assert agreed["b"].tolist() == [7.0]


def test_some_mini_batch_leaves_a_rank_without_rows():
    """Else the runs above would not show that ranks wait for each other there."""
    parts = make_ppo(mini_batches=8, ranks=Ranks(0, 2)).mini_batches(0)
    assert sorted(map(len, parts)) == [0] * 4 + [1] * 4


@pytest.mark.slow
def test_the_command_trains_on_two_ranks(world, tmp_path):
    settings = RLSettings(
        steps=2, micro_batch=2, gradient_accumulation=2, value_warmup=0, snapshots=1, slate=4
    )
    write_readout(tmp_path / "readout.safetensors")
    done = torchrun(
        2,
        *f"-m shielded_recrl.rl train --data {world.data} --base {world.base} "
        f"--templates {world.templates} --ranker {world.ranker} --adapter {world.adapter} "
        f"--readout {tmp_path}/readout.safetensors --out {tmp_path}/run "
        f"--scratch {tmp_path}/scratch --dataset books --variant no_proj "
        f"--explanation-tokens 6 --roles-seed 3 --seed 5 {flags(world.prompt)} "
        f"{flags(world.roles)} {flags(settings)} "
        f"{flags(ShieldSettings(kind='none', scope='all', penalty=0.0), prefix='shield.')}".split(),
    )
    assert done.returncode == 0, done.stderr
    # One process writes, and says so once.
    assert done.stdout.count(f"{tmp_path / 'run'}: reward") == 1
    rows = read_jsonl(tmp_path / "run" / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")


def write_readout(path: Path) -> None:
    from safetensors.torch import save_file

    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight, "gamma": torch.tensor(0.5)}, path)


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join()
    assert (ranks.rank, ranks.world, ranks.leads) == (0, 1, True)
    part = torch.tensor([1.0, 2.0])
    assert ranks.total(part) is part
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    ranks.add_gradients([weight])
    assert weight.grad.tolist() == [3.0, 4.0]
    ranks.agree([weight])
    assert weight.tolist() == [1.0, 1.0]
    ranks.leave()


class Pair(Ranks):
    """One of two ranks; the other one's numbers are all 1."""

    def total(self, part):
        return part + 1


def test_gradients_are_added_up_and_missing_ones_are_zero():
    first, second = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (3,)))
    first.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    Pair(0, 2).add_gradients([first, second])
    assert first.grad.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert second.grad.tolist() == [1.0, 1.0, 1.0]
