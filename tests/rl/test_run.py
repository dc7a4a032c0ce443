"""The run of a trainer that `rl train` and `dialogue train` share: files, snapshots, checkpoints."""

import pytest
import torch
from safetensors.torch import load_file

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.files import read_json, read_jsonl, sha256
from shielded_recrl.resume import load_progress
from shielded_recrl.rl.distributed import Ranks
from shielded_recrl.rl.run import asked_loggers, run
from shielded_recrl.rl.trainer import PPO
from tiny_ppo import make_ppo, timeless

STEPS = 4


def finish(folder, export=None, **options) -> PPO:
    """A run of four steps with checkpoints after each and snapshots after two; its trainer."""
    trainer = make_ppo(checkpoint_every=1, **options)

    def write() -> dict:
        (folder / "run/adapter").mkdir(parents=True)
        save_adapter(trainer.model, folder / "run/adapter")
        return {"more": trainer.step}

    run(
        trainer,
        export or write,
        steps=STEPS,
        name="tiny",
        owner="owner",
        out=folder / "run",
        scratch=folder / "scratch",
        snapshots_after={2, 4},
    )
    return trainer


def written(folder) -> tuple:
    files = ("adapter/adapter_model.safetensors", "snapshots.safetensors")
    rows = [timeless(row) for row in read_jsonl(folder / "run/train.jsonl")]
    return [sha256(folder / "run" / name) for name in files], rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(folder)


def test_the_files_of_a_run(whole):
    folder, trainer = whole
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {"adapter", "snapshots.safetensors", "train.jsonl", "summary.json"}
    assert not list((folder / "scratch").iterdir())
    assert read_jsonl(folder / "run/train.jsonl") == trainer.log
    summary = read_json(folder / "run/summary.json")
    assert summary == {
        "adapter_sha256": sha256(folder / "run/adapter/adapter_model.safetensors"),
        "fingerprint": "owner",
        "more": STEPS,
        "peak_memory_mb": trainer.log[-1]["memory_mb"],
        "seconds": sum(row["seconds"] for row in trainer.log),
        "seed": 0,
        "steps": STEPS,
        "trainable_parameters": sum(w.numel() for w in trainer.parameters.values()),
    }


def test_snapshots_are_the_weights_after_their_steps(whole):
    folder, trainer = whole
    found = load_file(folder / "run/snapshots.safetensors")
    assert found.keys() == {
        f"step-00000{step}/{name}" for step in (2, 4) for name in trainer.parameters
    }
    again = make_ppo()
    for step in (2, 4):
        while again.step < step:
            again.train_step()
        for name, weight in again.parameters.items():
            assert torch.equal(found[f"step-00000{step}/{name}"], weight)


def test_a_run_that_was_cut_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch, capsys):
    """Its first snapshot is of before the cut."""
    original = PPO.train_step

    def cut(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(PPO, "train_step", cut)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    finish(tmp_path)
    assert "resumed at step 3" in capsys.readouterr().err
    assert written(tmp_path) == written(whole[0])


def test_what_export_refuses_leaves_the_checkpoint_alone(whole, tmp_path, capsys):
    def refuse():
        raise UserError("not like this")

    with pytest.raises(UserError, match="not like this"):
        finish(tmp_path, refuse)
    assert not (tmp_path / "run").exists()
    assert load_progress(tmp_path / "scratch/checkpoint.safetensors", "owner").step == STEPS - 1
    finish(tmp_path)
    assert "resumed at step 3" in capsys.readouterr().err
    assert written(tmp_path) == written(whole[0])


class Follower(Ranks):
    """All of the batch, and none of the files."""

    leads = False


def test_a_rank_that_does_not_lead_trains_and_writes_nothing(whole, tmp_path, capsys):
    trainer = finish(tmp_path, ranks=Follower())
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""
    assert all(torch.equal(w, whole[1].parameters[n]) for n, w in trainer.parameters.items())


def test_loggers_by_default(monkeypatch):
    monkeypatch.delenv("RECRL_LOGGERS", raising=False)
    assert asked_loggers() == ("tensorboard",)
    monkeypatch.setenv("RECRL_LOGGERS", "tensorboard wandb")
    assert asked_loggers() == ("tensorboard", "wandb")
    monkeypatch.setenv("RECRL_LOGGERS", "")
    assert asked_loggers() == ()
