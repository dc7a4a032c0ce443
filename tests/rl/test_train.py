"""The command `rl train` on a tiny world: what it reads, draws and writes, and how it resumes."""

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
from shielded_recrl.resume import load_progress
from shielded_recrl.rl import train
from shielded_recrl.rl.distributed import Ranks
from shielded_recrl.rl.logs import checked
from shielded_recrl.rl.settings import RewardSettings, RLSettings
from shielded_recrl.rl.train import Drift, ExplainerPrompts, snapshot_steps, study_reward
from shielded_recrl.rl.trainer import PPO
from shielded_recrl.shield.bases import collect_bases
from shielded_recrl.shield.ranking_shield import RankingShield
from shielded_recrl.shield.serving import RankingHead, ReadOut, load_states
from shielded_recrl.shield.settings import ShieldSettings
from tiny_ppo import timeless
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
    drift_users=4,
    reward=RewardSettings(toxicity=0.0),
)


@pytest.fixture(scope="module")
def readout(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("readout") / "readout.safetensors"
    write_readout(path, gamma=0.5)
    return path


@pytest.fixture
def adapted(world):
    """Load the base with the adapter, moved by normal numbers of a standard deviation."""

    def load(moved: float = 0.0):
        model = load_adapter(load_base(world.base, "fp32", CPU), world.adapter, trainable=True)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in adapter_parameters(model).items():
                if "lora_B" in name and moved:
                    weight.normal_(0, moved, generator=generator)
        return model

    return load


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
    return RankingHead.of(states, ReadOut(torch.randn(states.items.shape[1], 32).numpy(), 1.0))


@pytest.fixture(scope="module")
def collect(world, protected):
    """Bases of an energy."""
    model = load_base(world.base, "fp32", CPU)
    return lambda energy: collect_bases(model, protected, energy=energy)


@pytest.fixture
def make(world, adapted):
    """Build the trainer of the study."""

    def build(shield=None, **changes) -> PPO:
        model, serving = adapted(), world.serving()
        states = load_states(world.ranker)
        settings = RLSettings(**QUICK.model_dump() | changes)
        return PPO(
            model,
            serving.prompts.tokenizer,
            ExplainerPrompts(serving, states, settings, 0),
            study_reward(serving, states.valid_users, states.items, model, settings.reward),
            settings,
            max_new_tokens=world.explanation_tokens,
            seed=0,
            shield=shield,
        )

    return build


def test_requests_are_of_train_users_and_their_top_unseen_items(world):
    states, serving = load_states(world.ranker), world.serving()
    prompts = ExplainerPrompts(serving, states, QUICK, 0)
    drawn = []
    for step in range(8):
        requests = prompts.requests(step)
        drawn.append([(request.user, request.item) for request in requests])
        assert len(requests) == 8
    assert len(set(map(tuple, drawn))) == 8
    for user, item in (pair for step in drawn for pair in step):
        assert user in serving.roles.train
        assert user not in serving.roles.heldout
        scores = states.items @ states.valid_users[user]
        scores[[0, *serving.splits.train[user]]] = -np.inf
        assert item in np.argsort(-scores)[: QUICK.slate]
    for request in prompts.requests(0):
        named = serving.splits.train[request.user][-len(request.history) :]
        assert [past.title for past in request.history] == [f"Harbor Road {i}" for i in named]


def test_prompts_are_a_pure_function_of_the_step(world):
    states, serving = load_states(world.ranker), world.serving()
    first, again = (ExplainerPrompts(serving, states, QUICK, 0) for _ in range(2))
    again(5)
    assert first(3) == again(3)
    assert first(3) != ExplainerPrompts(serving, states, QUICK, 1)(3)
    asked = first(3)
    assert len(asked.ids) == len(asked.active) == len(asked.context) == 8
    for ids, active, request in zip(*asked, strict=True):
        assert ids == request.prompt
        assert ids[: len(ids) - active] == request.prefix


def test_the_reward_knows_the_ranker_s_relevance(world, adapted):
    """Of two rankers that differ in sign alone, one finds the item best and the other worst."""
    serving, states = world.serving(), load_states(world.ranker)
    user = int(serving.roles.train[0])
    best = int((states.items[1:] @ states.valid_users[user]).argmax()) + 1
    request = serving.request(user, best, "valid")
    text = "You will like this one because it is what you read most."
    model, settings = adapted(), RewardSettings(toxicity=0.0)
    liked, disliked = (
        study_reward(serving, users, states.items, model, settings)([""], [text], [request])
        for users in (states.valid_users, -states.valid_users)
    )
    assert liked["click"] > disliked["click"] > 0
    for name in liked.keys() - {"click", "total"}:
        assert liked[name] == disliked[name]


def test_drift_by_hand(world, adapted, head):
    """Root mean square of the change of all scores over their standard deviation, user by user."""
    serving = world.serving()
    model = adapted(moved=0.3)
    rows = [serving.prefix(user) for user in serving.roles.protected[:4]]
    now = head(prefix_states(model, rows)).double()
    with model.disable_adapter():
        before = head(prefix_states(model, rows)).double()
    variance = before.var(dim=1, correction=0).mean()
    expected = ((now - before).square().mean() / variance).sqrt().item()
    assert expected > 0.1
    got = Drift(model, head, serving, 4, "nullspace")()["drift"]
    assert got == pytest.approx(expected, rel=1e-4)
    # Served with the adapter off, or by a ranker that does not read the LM, nothing moves.
    assert Drift(model, head, serving, 4, "separate")() == {"drift": 0.0}
    deaf = dataclasses.replace(head, gamma=0.0)
    assert Drift(model, deaf, serving, 4, "nullspace")() == {"drift": 0.0}


def test_snapshots_are_spread_evenly_and_the_last_is_the_end():
    def steps(steps: int, snapshots: int) -> set[int]:
        return snapshot_steps(QUICK.model_copy(update={"steps": steps, "snapshots": snapshots}))

    assert steps(16, 4) == {4, 8, 12, 16}
    assert steps(10, 3) == {3, 7, 10}
    assert steps(5, 1) == {5}


def test_the_shield_holds_protected_states_better_than_none(make, collect, protected, head):
    """Two protected prefixes span 32 dimensions in part: cut at the numerical rank."""
    change = {}
    for kind in ("none", "nullspace"):
        shield = RankingShield(collect(0.995), protected, head) if kind == "nullspace" else None
        trainer = make(shield, value_warmup=0)
        before = prefix_states(trainer.model, protected)
        for _ in range(3):
            trainer.train_step()
        change[kind] = (prefix_states(trainer.model, protected) - before).abs().max()
    assert change["nullspace"] < 0.2 * change["none"]


def command(world, readout, folder, **changes) -> dict:
    """Run `rl train`, return its summary."""
    arguments = {
        "data": world.data,
        "ranker": world.ranker,
        "base": world.base,
        "adapter": world.adapter,
        "templates": world.templates,
        "readout": readout,
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


def written(folder) -> tuple:
    """What a run wrote, less what the clock and the machine decide."""
    rows = [timeless(row) for row in read_jsonl(folder / "run" / "train.jsonl")]
    return (
        sha256(folder / "run" / "adapter"),
        sha256(folder / "run" / "snapshots.safetensors"),
        rows,
    )


class PowerCut(Exception):
    """What a run dies of."""


@pytest.mark.parametrize("kind", ["nullspace", "penalty"])
def test_a_command_that_died_goes_on_where_it_stopped(
    world, readout, collect, tmp_path, monkeypatch, kind
):
    """The same bytes; a snapshot of before the cut is kept."""
    collect(0.9).save(tmp_path / "bases.safetensors")
    constrained = kind == "nullspace"
    options = {
        "settings": QUICK.model_copy(update={"steps": 4}),
        "bases": tmp_path / "bases.safetensors" if constrained else None,
        "shield": ShieldSettings(
            kind="nullspace" if constrained else "none",
            energy=0.9,
            scope="all",
            penalty=10.0,
        ),
    }
    whole = command(world, readout, tmp_path / "whole", **options)
    steps, original = [], PPO.train_step

    def dies(self):
        if self.step == 3:
            raise PowerCut
        return original(self)

    monkeypatch.setattr(PPO, "train_step", dies)
    with pytest.raises(PowerCut):
        command(world, readout, tmp_path / "cut", **options)
    assert not (tmp_path / "cut" / "run").exists()
    assert (tmp_path / "cut" / "scratch" / "checkpoint.safetensors").is_file()

    def counts(self):
        steps.append(self.step)
        return original(self)

    monkeypatch.setattr(PPO, "train_step", counts)
    again = command(world, readout, tmp_path / "cut", **options)
    assert steps == [3]
    assert written(tmp_path / "cut") == written(tmp_path / "whole")
    assert again["fingerprint"] == whole["fingerprint"]
    assert again["adapter_sha256"] == whole["adapter_sha256"]
    assert again["steps"] == 4
    assert not list((tmp_path / "cut" / "scratch").iterdir())


def test_what_a_run_writes(world, readout, tmp_path):
    settings = QUICK.model_copy(update={"steps": 4, "snapshots": 2})
    summary = command(
        world,
        readout,
        tmp_path,
        settings=settings,
        live=tmp_path / "live",
        loggers=("tensorboard",),
    )
    rows = read_jsonl(tmp_path / "run" / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert checked(row) == row
        assert row["ctr"] == row["reward_click"]
    assert rows[0]["drift"] == 0.0  # the warm-up moves no policy
    assert rows[-1]["drift"] > 0
    assert summary["shield"] == {"kind": "none"}
    assert summary["trainable_share"] < 1
    snapshots = load_file(tmp_path / "run" / "snapshots.safetensors")
    assert {name.split("/")[0] for name in snapshots} == {"step-000002", "step-000004"}
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in saved.items():
        key = name.replace(".weight", ".default.weight")
        assert torch.equal(snapshots[f"step-000004/{key}"], tensor)
    assert list((tmp_path / "live" / "tb").iterdir())


def test_the_separate_critic_is_not_exported(world, readout, tmp_path):
    settings = QUICK.model_copy(update={"steps": 1, "snapshots": 1, "critic": "separate"})
    command(world, readout, tmp_path, settings=settings)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    snapshots = load_file(tmp_path / "run" / "snapshots.safetensors")
    assert len(saved) == len(snapshots) == 2 * 2 * 7
    assert not any("critic" in name or "value_head" in name for name in (*saved, *snapshots))
    assert sorted(path.name for path in (tmp_path / "run" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_number_that_is_not_finite_stops_the_run_and_leaves_its_checkpoint(
    world, readout, tmp_path, monkeypatch
):
    """The next start, with the reward mended, goes on from it."""
    original = train.study_reward
    whole = command(world, readout, tmp_path / "whole", settings=QUICK)

    def breaks_at_the_third_step(*arguments):
        reward, calls = original(*arguments), []

        def broken(prompts, responses, context):
            parts = reward(prompts, responses, context)
            calls.append(len(responses))
            parts["total"][6] += torch.nan if len(calls) == 3 else 0
            return parts

        return broken

    monkeypatch.setattr(train, "study_reward", breaks_at_the_third_step)
    with pytest.raises(UserError, match="'total' is not finite at step 3, response 6") as caught:
        command(world, readout, tmp_path / "cut", settings=QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cut" / "run").exists()
    # No broken number is in what the second step left.
    kept = load_progress(tmp_path / "cut/scratch/checkpoint.safetensors", whole["fingerprint"])
    assert kept.step == len(kept.log) == 2
    assert all(tensor.isfinite().all() for tensor in kept.tensors.values())
    monkeypatch.setattr(train, "study_reward", original)
    command(world, readout, tmp_path / "cut", settings=QUICK)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


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
    short = QUICK.model_copy(update={"steps": 1, "snapshots": 1})
    given = {"settings": short, "bases": files["bases"]}
    before = command(world, files["readout"], tmp_path / "before", **given)["fingerprint"]
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
    after = command(changed, files["readout"], tmp_path / "after", **given, shield=shield)
    assert after["fingerprint"] != before


class Fingerprinted(Exception):
    """Ends a run where its fingerprint is taken."""


def test_the_fingerprint_covers_the_machine(world, readout, tmp_path, monkeypatch):
    """Another number of processes, or a GPU, sums in another order: no same bytes come of it."""

    def of(world_size: int, device: str) -> str:
        devices = iter([CPU, torch.device(device)])  # the base is loaded first
        monkeypatch.setattr(train, "default_device", lambda: next(devices))
        monkeypatch.setattr(train, "join", lambda: Ranks(0, world_size))
        with pytest.raises(Fingerprinted) as caught:
            command(world, readout, tmp_path)
        return str(caught.value)

    original = train.fingerprint

    def ends(values):
        raise Fingerprinted(original(values))

    monkeypatch.setattr(train, "fingerprint", ends)
    alone = of(1, "cpu")
    assert of(1, "cpu") == alone
    assert len({alone, of(2, "cpu"), of(1, "cuda"), of(2, "cuda")}) == 4


def test_vllm_and_several_processes_are_refused(tmp_path):
    """Each would load a base of its own on the GPUs of the others."""
    asked = RLSettings(**QUICK.model_dump() | {"engine": "vllm"})
    with pytest.raises(UserError, match=r"^rl.engine: vllm and several processes") as caught:
        train.rollout_engine(asked, tmp_path, None, None, "bf16", 2)
    assert "\n" not in str(caught.value)
    assert train.rollout_engine(QUICK, tmp_path, None, None, "bf16", 2) is None


def test_the_null_space_needs_bases(world, readout, tmp_path):
    with pytest.raises(UserError, match="--bases: the shield nullspace needs them"):
        command(world, readout, tmp_path, shield=ShieldSettings())


def test_a_damaged_readout_is_one_line(world, tmp_path):
    path = tmp_path / "readout.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=str(path)) as caught:
        command(world, path, tmp_path)
    assert "\n" not in str(caught.value)


def test_bases_of_another_base_are_refused(world, readout, tmp_path, protected):
    path = tmp_path / "bases.safetensors"
    other = tiny_llama(len(world.serving().prompts.tokenizer), seed=9)
    collect_bases(other, protected, energy=0.9999).save(path)
    with pytest.raises(UserError, match="collected from other base weights") as caught:
        command(world, readout, tmp_path, shield=ShieldSettings(penalty=0.0), bases=path)
    assert "\n" not in str(caught.value)
