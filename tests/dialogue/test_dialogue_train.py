"""PPO from the supervised adapter on: what the policy stands over, and runs that are cut."""

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from command_line import here
from shielded_recrl.dialogue.comparison.recall import served
from shielded_recrl.dialogue.corpus.dialogues import RECOMMENDER, SCHEMAS, Dialogues
from shielded_recrl.dialogue.response.prompts import ResponsePrompts
from shielded_recrl.dialogue.rl.policy import (
    OVER,
    distance,
    load_policy,
    new_policy,
    save_policy,
    supervised_policy,
)
from shielded_recrl.dialogue.settings import DialogueRLSettings
from shielded_recrl.dialogue.train import RESAMPLES, TrainPrompts, digest, served_again
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.init import new_adapter, save_adapter
from shielded_recrl.explainer.lm import adapter_parameters, load_adapter
from shielded_recrl.files import read_json, read_jsonl, sha256
from shielded_recrl.resume import load_progress
from shielded_recrl.rl import run as rl_run
from shielded_recrl.rl.trainer import PPO
from shielded_recrl.settings import flags
from tiny_policy import PROMPT, TinyPolicy, move, write_policy
from tiny_ppo import timeless

# What the tests share takes long to make: not among the last.
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SETTINGS = DialogueRLSettings(
    steps=4,
    micro_batch=8,
    value_warmup=1,
    value_epochs=2,
    epochs=2,
    lora_rank=4,
    learning_rate=1e-2,
    checkpoint_every=1,
)
IDS = torch.tensor([[5, 9, 30, 7, 12]])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyPolicy:
    return write_policy(tmp_path_factory.mktemp("policy"))


def words(world: TinyPolicy, folder: Path, settings=SETTINGS) -> list[str]:
    """The command `train` and its flags."""
    places = f"--out {folder}/run --scratch {folder}/scratch"
    return f"train {world.flags} {places} {flags(settings)}".split()


def trained(world: TinyPolicy, folder: Path, settings=SETTINGS):
    return here("dialogue", *words(world, folder, settings))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    before = [sha256(path) for path in vars(world.tables).values()], sha256(world.critic)
    done = trained(world, folder)
    assert done.returncode == 0, done.stderr
    # It reads recommendations, and what it reads it leaves alone.
    assert before == ([sha256(path) for path in vars(world.tables).values()], sha256(world.critic))
    assert not list((folder / "scratch").iterdir())
    return folder / "run"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_reference_is_the_supervised_lm_and_not_the_base(world):
    base = load_base(world.base, "fp32", CPU)
    plain = logits(base)
    served = logits(load_adapter(base, world.supervised))
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, device=CPU)
    torch.testing.assert_close(logits(model), served, atol=1e-4, rtol=1e-4)
    move(model, 0.5)
    assert (logits(model) - served).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), served, atol=1e-4, rtol=1e-4)
        assert (logits(model) - plain).abs().max() > 0.1


def test_a_new_policy_says_what_the_supervised_lm_says_to_the_bit(world):
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, device=CPU)
    with model.disable_adapter():
        reference = logits(model)
    assert torch.equal(logits(model), reference)
    assert torch.equal(
        logits(supervised_policy(world.base, world.supervised, device=CPU)), reference
    )
    assert distance(model)["norm"] == 0 == distance(model)["moved"]
    assert all(weight.requires_grad for weight in adapter_parameters(model).values())


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_the_sum_is_rounded_and_the_adapter_is_not(world, tmp_path, precision):
    if precision == "nf4":
        pytest.importorskip("bitsandbytes")
    given = {"precision": precision, "device": CPU}
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, **given)
    with model.disable_adapter():
        reference = logits(model)
    assert torch.equal(logits(model), reference)
    assert (reference - logits(supervised_policy(world.base, world.supervised, device=CPU))).any()
    assert {weight.dtype for weight in adapter_parameters(model).values()} == {torch.float32}
    move(model, 0.3)
    save_policy(model, world.base, world.supervised, tmp_path / "adapter")
    again = load_policy(world.base, world.supervised, tmp_path / "adapter", **given)
    assert torch.equal(logits(again), logits(model))
    assert distance(again)["norm"] > 0
    assert (distance(again)["relative"] is None) == (precision == "nf4")


def test_gpt_2_is_merged_too(tmp_path):
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = new_adapter(load_base(tmp_path / "base", "fp32", CPU), 4, 8, seed=1)
    move(model, 0.2)
    (tmp_path / "supervised").mkdir()
    save_adapter(model, tmp_path / "supervised")
    policy = new_policy(tmp_path / "base", tmp_path / "supervised", 4, 8, seed=2, device=CPU)
    torch.testing.assert_close(logits(policy), logits(model), atol=1e-5, rtol=1e-5)
    move(policy, 0.2)
    assert distance(policy)["moved"] == distance(policy)["layers"] > 0
    with policy.disable_adapter():
        torch.testing.assert_close(logits(policy), logits(model), atol=1e-5, rtol=1e-5)


def test_a_policy_comes_back_as_it_was_saved(world, tmp_path):
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, device=CPU)
    move(model, 0.3)
    save_policy(model, world.base, world.supervised, tmp_path / "adapter")
    again = load_policy(world.base, world.supervised, tmp_path / "adapter", device=CPU)
    assert torch.equal(logits(again), logits(model))
    assert distance(again) == distance(model)
    assert read_json(tmp_path / "adapter/adapter_config.json")["base_model_name_or_path"] is None


def test_distance_is_the_norm_of_what_is_added(world):
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, device=CPU)
    move(model, 0.2)
    with model.disable_adapter():
        before = {n: w.clone() for n, w in model.named_parameters() if "base_layer" in n}
    found = distance(model)
    merged = dict(model.merge_and_unload().named_parameters())
    squares = [
        (merged[name.removeprefix("base_model.model.").replace(".base_layer", "")] - weight)
        .square()
        .sum()
        for name, weight in before.items()
    ]
    assert found["norm"] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-4)
    whole = float(sum(weight.square().sum() for weight in before.values())) ** 0.5
    assert found["relative"] == pytest.approx(found["norm"] / whole, rel=1e-4)
    assert found["layers"] == found["moved"] == len(before)


def test_an_adapter_over_another_supervised_one_is_refused(world, tmp_path):
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, device=CPU)
    save_policy(model, world.base, world.supervised, tmp_path / "adapter")
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "adapter", other)
    with pytest.raises(UserError, match=r"not an adapter over .*other"):
        load_policy(world.base, other, tmp_path / "adapter", device=CPU)
    with pytest.raises(UserError, match=r"not an adapter over .*nowhere"):
        load_policy(world.base, tmp_path / "nowhere", tmp_path / "adapter", device=CPU)
    (other / OVER).unlink()
    with pytest.raises(UserError, match="not an adapter over"):
        load_policy(world.base, world.supervised, other, device=CPU)


def test_an_adapter_over_another_base_is_refused(world, tmp_path):
    """The supervised adapter fits any base of that shape, but adds up to another LM there."""
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, device=CPU)
    save_policy(model, world.base, world.supervised, tmp_path / "adapter")
    base = tmp_path / "base"
    shutil.copytree(world.base, base)
    (base / "README.md").write_text("Words beside the weights are nothing to it.")
    load_policy(base, world.supervised, tmp_path / "adapter", device=CPU)
    other = load_base(base, "fp32", CPU)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    other.save_pretrained(base)
    with pytest.raises(UserError, match=r"adapter: not an adapter over .* and .*base; give") as end:
        load_policy(base, world.supervised, tmp_path / "adapter", device=CPU)
    assert "\n" not in str(end.value)


def test_each_pass_answers_every_turn_once(world):
    prompts = ResponsePrompts.load(*vars(world.tables).values(), world.base, PROMPT)
    requests = prompts.requests("train")
    asked = TrainPrompts(prompts, requests, 8, seed=1)
    steps = -(-2 * len(requests) // 8)
    rows = [row for step in range(steps) for row in asked.rows(step)][: 2 * len(requests)]
    assert sorted(rows[: len(requests)]) == list(range(len(requests)))
    assert sorted(rows[len(requests) :]) == list(range(len(requests)))
    assert rows[: len(requests)] != rows[len(requests) :]
    assert asked.rows(3) != TrainPrompts(prompts, requests, 8, seed=2).rows(3)
    assert asked.steps(DialogueRLSettings(steps=None, passes=2)) == steps
    assert asked.steps(SETTINGS) == 4
    batch = asked(0)
    assert [len(part) for part in batch] == [8, 8, 8]
    assert batch.ids[0] == prompts.ids(batch.context[0])
    with pytest.raises(UserError, match="no turn of a recommender"):
        TrainPrompts(prompts, [], 8, seed=1)


def test_the_files_of_a_run(run, world):
    assert sorted(path.name for path in run.iterdir()) == ["adapter", "summary.json", "train.jsonl"]
    rows = read_jsonl(run / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert {
        f"reward_{name}" for name in ("critic", "format", "support", "repetition", "copying")
    } < set(rows[0])
    summary = read_json(run / "summary.json")
    assert (summary["seed"], summary["steps"], summary["samples"]) == (5, 4, 32)
    model = load_policy(world.base, world.supervised, run / "adapter", device=CPU)
    assert summary["distance"] == pytest.approx(distance(model))
    assert summary["distance"]["norm"] > 0


# As the system kills: at once, in the third step, with two checkpoints written.
KILLED = """
import os, runpy, signal, sys
from shielded_recrl.rl.trainer import PPO

step = PPO.generate_trajectory

def killed(self):
    return os.kill(os.getpid(), signal.SIGKILL) if self.step == 2 else step(self)

PPO.generate_trajectory = killed
runpy.run_module("shielded_recrl.dialogue", run_name="__main__")
"""


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(world, run, tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *words(world, tmp_path)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    done = trained(world, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 2" in done.stderr
    assert sha256(tmp_path / "run/adapter") == sha256(run / "adapter")
    logs, summaries = zip(*(written(folder) for folder in (run, tmp_path / "run")), strict=True)
    assert logs[0] == logs[1]
    assert summaries[0] == summaries[1]
    assert not list((tmp_path / "scratch").iterdir())


def written(run: Path) -> tuple[list[dict], dict]:
    """Log and summary, less what the clock and the machine decide."""
    summary = read_json(run / "summary.json")
    rows = [timeless(row) for row in read_jsonl(run / "train.jsonl")]
    return rows, {k: v for k, v in summary.items() if k not in ("seconds", "peak_memory_mb")}


def test_the_summary_names_every_file_that_was_read(run, world):
    tables = {name: sha256(world.tables.data / f"{name}.parquet") for name in SCHEMAS}
    assert read_json(run / "summary.json")["inputs"] == tables | {
        "emotion": sha256(world.tables.emotion),
        "recommendations": sha256(world.tables.recommendations),
        "base": sha256(world.base),
        "supervised": sha256(world.supervised),
        "critic": sha256(world.critic),
    }


def test_recall_stands_in_the_summary_before_and_after(run, world):
    """New films of test turns, counted from the tables by hand."""
    found = read_json(run / "summary.json")["recall"]
    assert found.keys() == {"before", "after"}
    assert found["before"] == found["after"]
    assert found["after"].keys() == {"recall@1", "recall@10", "sha256", "targets"}
    assert found["after"]["sha256"] == sha256(world.tables.recommendations)
    tables = {name: pl.read_parquet(world.tables.data / f"{name}.parquet") for name in SCHEMAS}
    new = (
        tables["mentions"]
        .join(tables["dialogues"].filter(pl.col("split") == "test"), on="dialogue")
        .join(tables["turns"].filter(pl.col("role") == RECOMMENDER), on=["dialogue", "turn"])
        .filter(~pl.col("is_repeat"))
    )
    films = pl.read_parquet(world.tables.recommendations).rename({"position": "place"})
    assert found["after"]["targets"] == new.height
    places = new.join(films, on=["dialogue", "turn", "item"])["place"]
    for depth in (1, 10):
        mean = found["after"][f"recall@{depth}"]["mean"]
        assert mean == pytest.approx((places <= depth).sum() / new.height)
    assert 0 < found["after"]["recall@1"]["mean"] < found["after"]["recall@10"]["mean"]


def recommend_others(path: Path, order: str = "item") -> None:
    """The same films in another order, written where those before stood."""
    films = pl.read_parquet(path).sort("dialogue", "turn", order)
    place = pl.int_range(1, pl.len() + 1).over("dialogue", "turn").cast(pl.Int16)
    films.with_columns(position=place).write_parquet(path)


@pytest.fixture
def own(world, tmp_path) -> TinyPolicy:
    """The world with recommendations of its own, to change."""
    path = shutil.copy(world.tables.recommendations, tmp_path / "recommendations.parquet")
    return replace(world, tables=replace(world.tables, recommendations=path))


@pytest.mark.parametrize("order", ["item", "position"])
def test_recommendations_that_changed_in_training_are_refused(own, order):
    """Other films, and the same ones in other bytes."""
    path = own.tables.recommendations
    inputs = own.tables.inputs(own.base, PROMPT, seed=5)
    dialogues = Dialogues.load(inputs.data)
    before = served(path, dialogues, RESAMPLES)
    assert served_again(inputs, dialogues, before) == before
    recommend_others(path, order)
    if order == "position":
        pl.read_parquet(path).write_parquet(path, compression="uncompressed")
    with pytest.raises(UserError, match="changed while responses were trained") as caught:
        served_again(inputs, dialogues, before)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_whose_recommendations_changed_is_no_run(own, tmp_path, monkeypatch):
    step = PPO.train_step

    def recommended_anew(self):
        recommend_others(own.tables.recommendations)
        return step(self)

    monkeypatch.setattr(PPO, "train_step", recommended_anew)
    done = trained(own, tmp_path, SETTINGS.model_copy(update={"steps": 1}))
    assert done.returncode == 1
    assert "recommendations.parquet: changed while responses were trained" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(world, tmp_path, monkeypatch):
    monkeypatch.setattr(rl_run, "discard_progress", lambda path: None)
    assert trained(world, tmp_path, SETTINGS.model_copy(update={"steps": 2})).returncode == 0
    checkpoint = tmp_path / "scratch/checkpoint.safetensors"
    assert checkpoint.is_file()
    assert load_progress(checkpoint, "another run") is None
    done = trained(world, tmp_path, SETTINGS.model_copy(update={"steps": 1}))
    assert done.returncode == 0
    assert "resumed" not in done.stderr


def test_a_digest_sees_one_weight(world):
    model = supervised_policy(world.base, world.supervised, device=CPU)
    before = digest(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] += 1e-6
    assert digest(model) != before


def test_a_critic_that_learns_on_the_side_stops_the_run(world, tmp_path, monkeypatch):
    step = PPO.train_step

    def thaw(self):
        row = step(self)
        critic = self.reward.rewards[0].critic.learned.model
        with torch.no_grad():
            # Behind the counters that the critic looks at.
            next(critic.parameters()).data.view(-1)[0] += 1.0
        return row

    monkeypatch.setattr(PPO, "train_step", thaw)
    done = trained(world, tmp_path)
    assert done.returncode == 1
    assert "critic" in done.stderr
    assert "changed" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"critic": "nowhere"}, "nowhere: no model.safetensors"),
        ({"supervised": "nowhere"}, "nowhere: the adapter does not fit"),
    ],
)
def test_what_is_missing_is_one_line(world, tmp_path, changes, reason):
    wrong = replace(world, **{name: tmp_path / path for name, path in changes.items()})
    done = trained(wrong, tmp_path)
    assert done.returncode == 1
    assert reason in done.stderr.strip().splitlines()[-1]


def test_vllm_is_refused(world, tmp_path):
    done = trained(world, tmp_path, SETTINGS.model_copy(update={"engine": "vllm"}))
    assert done.returncode == 1
    assert "dialogue.rl.engine" in done.stderr


def test_adapter_weights_are_stored_alone(run):
    assert all("lora_" in name for name in load_file(run / "adapter/adapter_model.safetensors"))
