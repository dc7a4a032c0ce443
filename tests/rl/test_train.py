"""PPO training on a tiny world: what moves, what does not, and that the same bytes come back."""

import dataclasses
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import adapter_parameters, load_adapter, prefix_states
from shielded_recrl.files import read_json, read_jsonl, sha256
from shielded_recrl.resume import load_progress, save_progress
from shielded_recrl.rl import train
from shielded_recrl.rl.settings import RLSettings
from shielded_recrl.rl.train import Trainer
from shielded_recrl.shield.bases import collect_bases
from shielded_recrl.shield.ranking_shield import RankingShield
from shielded_recrl.shield.serving import RankingHead, ReadOut, load_states
from shielded_recrl.shield.settings import ShieldSettings
from tiny_world import tiny_llama

CPU = torch.device("cpu")
QUICK = RLSettings(
    steps=4,
    micro_batch=4,
    gradient_accumulation=2,
    learning_rate=1e-2,
    value_warmup=1,
    value_epochs=2,
    slate=4,
    snapshots=2,
    checkpoint_every=1,
)


@pytest.fixture
def make(world):
    """Build a trainer; see `Trainer`."""

    def build(constraint=None, seed=0, moved=0.0, **changes) -> Trainer:
        model = load_adapter(load_base(world.base, "fp32", CPU), world.adapter, trainable=True)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in adapter_parameters(model).items():
                if "lora_B" in name and moved:
                    weight.normal_(0, moved, generator=generator)
        states = load_states(world.ranker)
        return Trainer(
            model,
            world.serving(),
            states.valid_users,
            states.items,
            QUICK.model_copy(update=changes),
            constraint,
            world.explanation_tokens,
            seed,
        )

    return build


@pytest.fixture(scope="module")
def protected(world):
    """Prefixes of the protected users."""
    serving = world.serving()
    return [serving.prefix(user) for user in serving.roles.protected]


@pytest.fixture(scope="module")
def head(world):
    """A ranking that reads the LM."""
    torch.manual_seed(0)
    states = load_states(world.ranker)
    readout = ReadOut(torch.randn(states.items.shape[1], 32).numpy(), 1.0)
    return RankingHead.of(states, readout)


@pytest.fixture(scope="module")
def collect(world, protected):
    """Bases of an energy."""
    model = load_base(world.base, "fp32", CPU)
    return lambda energy: collect_bases(model, protected, energy=energy)


@pytest.fixture
def shield(collect, protected, head):
    return lambda **options: RankingShield(collect(0.9), protected, head, **options)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.trained.items()}


def test_the_warm_up_moves_the_value_head_only(make):
    trainer = make()
    before = weights(trainer)
    trainer.train_step()
    after = weights(trainer)
    for name in before:
        assert torch.equal(before[name], after[name]) != name.startswith("value_head.")
    assert (trainer.log[0]["policy_loss"], trainer.log[0]["clip_share"]) == (0.0, 0.0)
    assert trainer.log[0]["kl"] == 0.0
    trainer.train_step()
    trainer.train_step()
    last = weights(trainer)
    assert not any(torch.equal(after[name], last[name]) for name in last)
    assert trainer.log[2]["kl"] != 0.0


def test_the_base_stays_frozen(make):
    trainer = make(value_warmup=0)
    frozen = {n: w.clone() for n, w in trainer.model.named_parameters() if "lora_" not in n}
    for _ in range(2):
        trainer.train_step()
    now = dict(trainer.model.named_parameters())
    assert frozen
    assert all(torch.equal(weight, now[name]) for name, weight in frozen.items())


def test_accumulated_micro_batches_make_the_same_update_as_the_full_batch(make, world):
    """Plain SGD of rate 1 without clipping, so that the update is the gradient; mixed lengths."""
    updates = []
    for micro_batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = make(
            moved=0.05,
            micro_batch=micro_batch,
            gradient_accumulation=accumulation,
            epochs=1,
            max_grad_norm=1e9,
        )
        trainer.optimizer = torch.optim.SGD(trainer.parameters.values(), lr=1.0)
        before = weights(trainer)
        trajectory = trainer.generate_trajectory()
        lengths = torch.tensor([1, 6, 2, 1, 5, 3, 6, 6])[:, None]
        response = (torch.arange(world.explanation_tokens)[None] < lengths).float()
        rollout = trajectory.rollout._replace(response=response)
        log = trainer.update_policy(trajectory._replace(rollout=rollout))
        after = weights(trainer)
        update = torch.cat([(after[name] - before[name]).flatten() for name in trainer.parameters])
        updates.append((trajectory.rollout.ids, update, log))
    ids, full, log = updates[0]
    assert full.norm() > 1e-3
    for other_ids, update, other_log in updates[1:]:
        assert torch.equal(ids, other_ids)
        torch.testing.assert_close(update, full, atol=1e-6, rtol=0)
        assert other_log == pytest.approx(log, abs=1e-6)


def test_the_first_pass_has_ratio_one(make):
    """Whitened advantages have mean zero, so the loss at ratio 1 is zero and nothing is clipped."""
    trainer = make(moved=0.05, epochs=1)
    trajectory = trainer.generate_trajectory()
    log = trainer.update_policy(trajectory)
    assert log["policy_loss"] == pytest.approx(0, abs=1e-6)
    assert log["clip_share"] == 0.0
    # The update did move the policy: the ratio is no longer 1.
    moved = trainer.evaluate(trajectory.rollout)[0].detach()
    assert (moved - trajectory.logp).abs().max() > 1e-4


def test_an_update_raises_the_surrogate(make):
    """What was better than expected becomes likelier."""
    trainer = make(moved=0.05, epochs=1, learning_rate=1e-3)
    trajectory = trainer.generate_trajectory()
    trainer.update_policy(trajectory)
    gain = (trainer.evaluate(trajectory.rollout)[0].detach() - trajectory.logp).exp() - 1
    assert (gain * trajectory.advantages).sum() > 0


def test_a_text_that_does_not_end_is_penalised(make):
    """With lambda 1 and a fresh value head, each return is the reward to come: 0.25 lower."""
    options = {"gae_lambda": 1.0, "kl_weight": 0.0}
    free = make(missing_eos_penalty=0.0, **options).generate_trajectory()
    fined = make(missing_eos_penalty=0.25, **options).generate_trajectory()
    assert torch.equal(free.rollout.ids, fined.rollout.ids)
    assert not free.rollout.ended.all()
    fine = 0.25 * (~free.rollout.ended).float()[:, None] * free.rollout.response
    torch.testing.assert_close(fined.returns, free.returns - fine)


def test_the_value_head_learns_the_returns(make):
    trainer = make(value_epochs=100, value_learning_rate=0.1, clip_value=10.0)
    trajectory = trainer.generate_trajectory()
    mask = trajectory.rollout.response
    start = ((trajectory.values - trajectory.returns).square() * mask).sum() / mask.sum() / 2
    end = trainer.update_value(trajectory)
    assert end < 0.7 * start.item()


def test_requests_are_of_train_users_and_their_top_unseen_items(make, world):
    trainer = make()
    serving, states = trainer.serving, load_states(world.ranker)
    drawn = []
    for step in range(8):
        trainer.step = step
        drawn.append([(request.user, request.item) for request in trainer.requests()])
    assert len(set(map(tuple, drawn))) == 8
    for user, item in (pair for step in drawn for pair in step):
        assert user in serving.roles.train
        assert user not in serving.roles.heldout
        scores = states.items @ states.valid_users[user]
        scores[[0, *serving.splits.train[user]]] = -np.inf
        assert item in np.argsort(-scores)[: QUICK.slate]
    for request in trainer.requests():
        named = serving.splits.train[request.user][-len(request.history) :]
        assert [past.title for past in request.history] == [f"Harbor Road {i}" for i in named]


def run(trainer: Trainer, steps: int) -> Trainer:
    for _ in range(steps):
        trainer.train_step()
    return trainer


def exported(trainer: Trainer, out):
    trainer.export(out, dataset="d", variant="v", kind="none", fingerprint="f")
    log = [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(out / "train.jsonl")
    ]
    return sha256(out / "adapter"), sha256(out / "snapshots.safetensors"), log


@pytest.mark.parametrize("kind", ["none", "nullspace", "penalty"])
def test_a_resumed_run_ends_in_the_same_bytes(make, shield, tmp_path, kind):
    def constraint():
        options = {"penalty": 10.0, "batch_size": 2} if kind == "penalty" else {}
        return None if kind == "none" else shield(**options)

    undisturbed = exported(run(make(constraint()), 4), tmp_path / "whole")
    path = tmp_path / "checkpoint.safetensors"
    save_progress(path, run(make(constraint()), 2).checkpoint(), "owner")
    resumed = make(constraint())
    resumed.restore(load_progress(path, "owner"))
    assert resumed.step == 2
    assert exported(run(resumed, 2), tmp_path / "resumed") == undisturbed


def test_the_seed_decides(make, tmp_path):
    first = exported(run(make(), 2), tmp_path / "a")
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert exported(run(make(), 2), tmp_path / "b") == first
    assert exported(run(make(seed=1), 2), tmp_path / "c")[0] != first[0]


def test_snapshots_lie_along_the_run_and_end_with_the_adapter(make, tmp_path):
    trainer = run(make(), 4)
    assert {name.split("/")[0] for name in trainer.snapshots} == {"step-000002", "step-000004"}
    exported(trainer, tmp_path)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    snapshots = load_file(tmp_path / "snapshots.safetensors")
    for name, tensor in saved.items():
        key = name.replace(".weight", ".default.weight")
        assert torch.equal(snapshots[f"step-000004/{key}"], tensor)


def test_training_stays_in_the_null_space(make, shield, tmp_path):
    trainer = make(shield(), value_warmup=0)
    assert trainer.shield.leakage() < 1e-6
    run(trainer, 3)
    assert trainer.shield.leakage() < 1e-6
    exported(trainer, tmp_path)
    assert read_json(tmp_path / "summary.json")["shield"]["leakage"] < 1e-6


def test_the_shield_holds_protected_states_better_than_none(make, collect, protected, head):
    """Two protected prefixes span 32 dimensions in part: cut at the numerical rank."""
    change = {}
    for kind in ("none", "nullspace"):
        constraint = None
        if kind == "nullspace":
            constraint = RankingShield(collect(0.995), protected, head)
        trainer = make(constraint, value_warmup=0)
        rows = [trainer.serving.prefix(user) for user in trainer.serving.roles.protected]
        before = prefix_states(trainer.model, rows)
        change[kind] = (prefix_states(run(trainer, 3).model, rows) - before).abs().max()
    assert change["nullspace"] < 0.2 * change["none"]


def test_a_gradient_that_is_not_finite_is_one_line(make):
    trainer = make(value_warmup=0)
    trajectory = trainer.generate_trajectory()
    broken = trajectory._replace(advantages=trajectory.advantages * float("inf"))
    before = weights(trainer)
    with pytest.raises(UserError, match="not finite at step 1") as caught:
        trainer.update_policy(broken)
    assert "\n" not in str(caught.value)
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def command(world, folder, **changes) -> dict:
    """Run `rl train`, return its summary."""
    arguments = {
        "data": world.data,
        "ranker": world.ranker,
        "base": world.base,
        "adapter": world.adapter,
        "templates": world.templates,
        "out": folder / "run",
        "scratch": folder / "scratch",
        "dataset": "books",
        "variant": "no_proj",
        "prompt": world.prompt,
        "roles": world.roles,
        "settings": QUICK.model_copy(update={"steps": 2, "snapshots": 1}),
        "shield": ShieldSettings(kind="none", scope="all", penalty=0.0),
        "explanation_tokens": world.explanation_tokens,
        "roles_seed": world.roles_seed,
    }
    train.main(**arguments | changes)
    return read_json(folder / "run" / "summary.json")


def test_a_command_that_died_goes_on_where_it_stopped(world, tmp_path, monkeypatch):
    settings = QUICK.model_copy(update={"steps": 3})
    whole = command(world, tmp_path / "whole", settings=settings)
    steps, original = [], Trainer.train_step

    def dies(self):
        if self.step == 2:
            raise RuntimeError("power cut")
        original(self)

    monkeypatch.setattr(Trainer, "train_step", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        command(world, tmp_path / "cut", settings=settings)
    assert not (tmp_path / "cut" / "run").exists()

    monkeypatch.setattr(
        Trainer, "train_step", lambda self: (steps.append(self.step), original(self))
    )
    again = command(world, tmp_path / "cut", settings=settings)
    assert steps == [2]
    assert again["adapter_sha256"] == whole["adapter_sha256"]
    assert again["fingerprint"] == whole["fingerprint"]
    assert again["steps"] == 3
    assert not list((tmp_path / "cut" / "scratch").iterdir())


def write_readout(path, gamma: float) -> None:
    weight = np.random.default_rng(0).normal(size=(8, 32)).astype("f4")
    save_file({"weight": weight, "gamma": np.array(gamma)}, path)


@pytest.mark.parametrize(
    "what",
    ["prefix.txt", "request.txt", "test.parquet", "users.parquet", "bases", "readout", "shield"],
)
def test_the_fingerprint_covers_all_that_a_run_reads(world, collect, tmp_path, what):
    """A checkpoint of a run with other prompts, roles, bases or ranking must not be taken up."""
    files = {name: tmp_path / f"{name}.safetensors" for name in ("bases", "readout")}
    collect(0.5).save(files["bases"])
    write_readout(files["readout"], gamma=0.5)
    before = command(world, tmp_path / "before", **files)["fingerprint"]
    copies = {name: tmp_path / name for name in ("data", "templates")}
    shutil.copytree(world.data, copies["data"])
    shutil.copytree(world.templates, copies["templates"])
    shield = ShieldSettings(kind="none", scope="all", penalty=0.0)
    if what == "bases":
        collect(0.5).randomised(0).save(files["bases"])
    elif what == "readout":
        write_readout(files["readout"], gamma=0.6)
    elif what == "shield":
        shield = shield.model_copy(update={"penalty": 1.0})
    elif what.endswith(".txt"):
        path = copies["templates"] / what
        path.write_text("User " + path.read_text(encoding="utf-8"), encoding="utf-8")
    else:
        path = copies["data"] / what
        rows = pl.read_parquet(path)
        if what == "users.parquet":
            rows = rows.with_columns(source_id=pl.format("x{}", "source_id"))
        else:
            rows = rows.filter(pl.col("user") > 4)
        rows.write_parquet(path)
    changed = dataclasses.replace(world, **copies)
    after = command(changed, tmp_path / "after", **files, shield=shield)
    assert after["fingerprint"] != before


def test_the_null_space_needs_bases(world, tmp_path):
    with pytest.raises(UserError, match="--bases: the shield nullspace needs them"):
        command(world, tmp_path, shield=ShieldSettings())


@pytest.mark.parametrize("shield", [{"kind": "ranker"}, {"kind": "none", "penalty": 1.0}])
def test_what_reads_the_ranking_needs_a_readout(world, tmp_path, shield):
    with pytest.raises(UserError, match="--readout: the shield ranker and a penalty read it"):
        command(world, tmp_path, shield=ShieldSettings(**shield))


def test_bases_of_another_base_are_refused(world, tmp_path, protected):
    path = tmp_path / "bases.safetensors"
    other = tiny_llama(len(world.serving().prompts.tokenizer), seed=9)
    collect_bases(other, protected, energy=0.9999).save(path)
    with pytest.raises(UserError, match="collected from other base weights") as caught:
        command(world, tmp_path, shield=ShieldSettings(penalty=0.0), bases=path)
    assert "\n" not in str(caught.value)
