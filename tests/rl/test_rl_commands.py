"""`shield readout`, `shield bases`, `rl train` and `rl evaluate` as a user runs them."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from command_line import elsewhere, here
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_tokenizer
from shielded_recrl.explainer.init import main as init
from shielded_recrl.files import read_json, read_jsonl, sha256
from shielded_recrl.rl import evaluate, generate, train
from shielded_recrl.rl.evaluation import bertscore, generation
from shielded_recrl.rl.settings import (
    EvaluationSettings,
    RewardSettings,
    RLSettings,
    SamplingSettings,
    SlateSettings,
)
from shielded_recrl.settings import flags, section
from shielded_recrl.shield.bases import Bases
from shielded_recrl.shield.settings import ShieldSettings
from tiny_world import call, save_model, tiny_llama

# What the tests share takes long to make: not among the last.
pytestmark = pytest.mark.slow

EVALUATION = EvaluationSettings(users=5, items_per_user=2, sessions=20, bootstrap=50)
TRAINING = RLSettings(
    steps=2, micro_batch=4, value_warmup=0, snapshots=2, slate=4, learning_rate=3e-2
)
SHIELD = ShieldSettings(energy=0.9, scope="all", penalty=0.0)
RESULTS = (
    "certificate.json",
    "evaluation.json",
    "explanations.jsonl",
    "rankings.parquet",
    "users.parquet",
)
FIGURES = {"ndcg@10", "hr@10"}


def inputs(world) -> str:
    return (
        f"--data {world.data} --base {world.base} --templates {world.templates} "
        f"{flags(world.prompt)} {flags(world.roles)}"
    )


def run_flags(world) -> str:
    return (
        f"{inputs(world)} --ranker {world.ranker} --dataset books --variant shielded "
        f"--explanation-tokens {world.explanation_tokens} --roles-seed {world.roles_seed} --seed 5 "
        f"{flags(SHIELD, prefix='shield.')}"
    )


@pytest.fixture(scope="module")
def out(world, tmp_path_factory):
    """Folder of the outputs of all four commands."""
    out = tmp_path_factory.mktemp("commands")
    words = (
        f"shield readout {inputs(world)} --ranker {world.ranker} --gamma 1.0 "
        f"--epochs 3 --seed {world.roles_seed} --out {out}/readout.safetensors",
        f"shield bases {inputs(world)} --energy 0.9 --seed {world.roles_seed} "
        f"--out {out}/bases.safetensors",
        f"rl train {run_flags(world)} --adapter {world.adapter} "
        f"--readout {out}/readout.safetensors --bases {out}/bases.safetensors --out {out}/run "
        f"--scratch {out}/scratch {flags(TRAINING)}",
        f"rl evaluate {run_flags(world)} --run {out}/run "
        f"--readout {out}/readout.safetensors --bases {out}/bases.safetensors {flags(SamplingSettings())} {flags(EVALUATION)}",
    )
    done = elsewhere(*(line.split() for line in words))
    assert done.returncode == 0, done.stderr
    made = ("readout.safetensors", "bases.safetensors", "run", "run")
    said = [line for line in done.stdout.splitlines() if line.startswith(f"{out}/")]
    assert len(said) == len(made), done.stdout
    for line, name in zip(said, made, strict=True):
        assert line.startswith(f"{out / name}: ")
    return out


def test_readout_and_bases(out):
    assert load_file(out / "readout.safetensors").keys() == {"weight", "gamma"}
    assert read_json(out / "readout.json")["gamma"] == 1.0
    modules = Bases.load(out / "bases.safetensors").modules
    assert len(modules) == 2 * 7
    for basis in modules.values():
        q = basis.matrix
        torch.testing.assert_close(q.T @ q, torch.eye(q.shape[1]), atol=1e-5, rtol=0)


def test_the_files_of_a_run(out):
    assert sorted(p.relative_to(out / "run").as_posix() for p in (out / "run").rglob("*")) == [
        "adapter",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "certificate.json",
        "evaluation.json",
        "explanations.jsonl",
        "rankings.parquet",
        "snapshots.safetensors",
        "summary.json",
        "train.jsonl",
        "users.parquet",
    ]
    assert not list((out / "scratch").glob("*"))


def test_the_log_and_the_summary(out):
    rows = read_jsonl(out / "run" / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert set(rows[0]) >= {
        *("reward", "reward_length", "reward_features", "reward_coherence", "kl", "words"),
        *("policy_loss", "value_loss", "entropy", "clip_share", "explained_variance", "seconds"),
    }
    summary = read_json(out / "run" / "summary.json")
    adapter = load_file(out / "run" / "adapter" / "adapter_model.safetensors")
    trained = sum(array.size for array in adapter.values())
    assert summary["trainable_parameters"] == trained
    assert 0 < summary["trainable_share"] < 1
    assert summary["adapter_sha256"] == sha256(out / "run/adapter/adapter_model.safetensors")
    assert (summary["dataset"], summary["variant"], summary["seed"]) == ("books", "shielded", 5)
    assert (summary["steps"], summary["shield"]["kind"]) == (2, "nullspace")
    assert summary["shield"]["leakage"] < 1e-6
    assert summary["peak_memory_mb"] > 50
    assert len(summary["fingerprint"]) == 64


def test_the_evaluation_has_the_keys_others_read(out):
    got = read_json(out / "run" / "evaluation.json")
    assert (got["dataset"], got["variant"], got["seed"], got["gamma"]) == (
        *("books", "shielded", 5),
        1.0,
    )
    assert (
        set(got["ranker"])
        == set(got["lm"])
        == set(got["served_before"])
        == set(got["served_after"])
        == FIGURES
    )
    assert [row["step"] for row in got["curve"]] == [0, 1, 2]
    assert all(
        set(row) >= FIGURES | {"step", "ctr", "quality", "words", "reward", "kl"}
        for row in got["curve"]
    )
    first, _, last = got["curve"]
    assert (first["kl"], first["reward"], last["reward"]) == (
        *(0.0, got["reward"]["before"]),
        got["reward"]["after"],
    )
    assert set(got["ndcg_change"]) == {"mean", "low", "high"}
    assert {role: drift["users"] for role, drift in got["drift"].items()} == {
        "protected": 5,
        "heldout": 7,
    }
    assert set(got["drift"]["heldout"]) >= {
        *("users", "max_score_change", "mean_score_change", "top10_identical", "kendall_tau"),
        *("ndcg_change", "hr_change", "ndcg_low", "ndcg_high"),
    }
    assert set(got["reward"]) == {"before", "after", "gain", "gain_low", "gain_high", "ceiling"}
    assert set(got["overoptimisation"]) == {"peak", "found"} | {
        f"{name}{end}" for name in ("gold_fall", "proxy_rise") for end in ("", "_low", "_high")
    }
    assert set(got["claims"]) == {
        *("precision_before", "precision_after", "change", "change_low", "change_high"),
        *("named_before", "named_after"),
    }
    assert got["reward"]["gain"] == pytest.approx(got["reward"]["after"] - got["reward"]["before"])
    assert set(got["ctr"]) == {
        *("before", "after", "relative", "relative_low", "relative_high", "attainable"),
        *("lift_share", "lift_share_low", "lift_share_high", "from_empty", "published_share"),
    }
    assert set(got["text"]) == {
        f"{name}_{when}"
        for name in ("words", "quality", "unique", "empty")
        for when in ("before", "after")
    }


def test_the_evaluation_agrees_with_its_rows(out):
    got = read_json(out / "run" / "evaluation.json")
    rows = pl.DataFrame(read_jsonl(out / "run" / "explanations.jsonl"))
    assert set(rows.columns) == {
        *("step", "user", "item", "position", "title", "categories", "history", "text"),
        *("quality", "propensity", "clicks"),
        *("quality_examination", "propensity_examination", "clicks_examination"),
    }
    assert len(rows) == 3 * 5 * 2
    means = rows.group_by("step").agg(pl.col("quality").mean()).sort("step")["quality"]
    assert [row["quality"] for row in got["curve"]] == pytest.approx(means.to_list())
    shown = rows.select("step", "user", "item", "position").partition_by("step", include_key=False)
    assert shown[0].equals(shown[1])
    assert shown[0].equals(shown[2])

    lists = pl.read_parquet(out / "run" / "rankings.parquet")
    assert set(lists["step"]) == {0, 2}
    before, after = (
        lists.filter(pl.col("step") == step).sort("role", "user", "position") for step in (0, 2)
    )
    same = before.with_columns(same=before["item"] == after["item"])
    for role, drift in got["drift"].items():
        identical = same.filter(pl.col("role") == role).group_by("user").agg(pl.col("same").all())
        assert drift["top10_identical"] == pytest.approx(identical["same"].mean())
    # The slate explained is the top of the served list of the untrained adapter.
    top = before.filter(pl.col("position") <= 2).select("user", "item", "position")
    assert shown[0].join(top, on=["user", "item", "position"], how="anti").is_empty()


def again(world, out, folder, **changes) -> dict:
    """Evaluate the run once more in a copy of its folder."""
    shutil.copytree(out / "run", folder)
    arguments = {
        "data": world.data,
        "ranker": world.ranker,
        "base": world.base,
        "run": folder,
        "readout": out / "readout.safetensors",
        "templates": world.templates,
        "dataset": "books",
        "variant": "shielded",
        "prompt": world.prompt,
        "roles": world.roles,
        "sampling": SamplingSettings(),
        "settings": EVALUATION,
        "shield": SHIELD,
        "reward": RewardSettings(),
        "bases": out / "bases.safetensors",
        "explanation_tokens": world.explanation_tokens,
        "roles_seed": world.roles_seed,
        "seed": 5,
    }
    call(evaluate.main, **arguments | changes)
    return read_json(folder / "evaluation.json")


def test_a_second_evaluation_writes_the_same_bytes(world, out, tmp_path):
    again(world, out, tmp_path / "run")
    for name in RESULTS:
        assert sha256(tmp_path / "run" / name) == sha256(out / "run" / name), name


def part(world, out, run, folder, shard, shards, **changes):
    """The texts of a shard as `rl generate` writes them."""
    path = folder / f"shard-{shard}-of-{shards}.json"
    arguments = {
        "data": world.data,
        "ranker": world.ranker,
        "base": world.base,
        "run": run,
        "readout": out / "readout.safetensors",
        "templates": world.templates,
        "out": path,
        "prompt": world.prompt,
        "roles": world.roles,
        "sampling": SamplingSettings(),
        "settings": section(EVALUATION, SlateSettings),
        "explanation_tokens": world.explanation_tokens,
        "roles_seed": world.roles_seed,
        "seed": 5,
        "shard": shard,
        "shards": shards,
    }
    call(generate.main, **arguments | changes)
    return path


def test_texts_of_shards_are_evaluated_to_the_same_bytes(world, out, tmp_path, monkeypatch):
    """Two users at a time, five in all: of four shards the first has none."""
    monkeypatch.setattr(generation, "GENERATION_BATCH", 4)
    again(world, out, tmp_path / "whole")
    made = tmp_path / "whole"
    for shards in (2, 4):
        parts = [part(world, out, made, tmp_path, shard, shards) for shard in range(shards)]
        again(world, out, tmp_path / f"of-{shards}", parts=tuple(parts[::-1]))
        for name in RESULTS:
            assert sha256(tmp_path / f"of-{shards}" / name) == sha256(made / name), name
    assert [len(read_json(path)["part"]["texts"]) for path in parts] == [0, 12, 12, 6]


def test_texts_of_another_run_are_refused(world, out, tmp_path):
    """Where anything else has been asked than what the part was made from."""
    run = shutil.copytree(out / "run", tmp_path / "run")
    given = {"parts": (part(world, out, run, tmp_path, 0, 1),)}
    for number, changes in enumerate(
        [{"seed": 6}, {"explanation_tokens": 5}, {"sampling": SamplingSettings(top_p=0.5)}]
    ):
        with pytest.raises(UserError, match=r"shard-0-of-1\.json: made from other") as caught:
            again(world, out, tmp_path / str(number), **given | changes)
        assert "\n" not in str(caught.value)
    # What evaluates the texts and does not decide them may change.
    more = EVALUATION.model_copy(update={"bootstrap": 60})
    again(world, out, tmp_path / "more", **given, settings=more)


def test_ranking_with_the_adapter_off_does_not_drift_at_all(world, out, tmp_path):
    got = again(world, out, tmp_path / "run", shield=ShieldSettings(kind="separate"))
    for drift in got["drift"].values():
        assert drift["max_score_change"] == drift["mean_score_change"] == 0.0
        assert (drift["top10_identical"], drift["ndcg_change"], drift["hr_change"]) == (1.0, 0, 0)
        assert drift["kendall_tau"] == pytest.approx(1.0)
    assert got["served_before"] == got["served_after"]
    assert got["ndcg_change"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    # Ranking apart, it is the same run: the same texts, and a drift where the adapter is on.
    assert sha256(tmp_path / "run/explanations.jsonl") == sha256(out / "run/explanations.jsonl")
    assert read_json(out / "run/evaluation.json")["drift"]["heldout"]["max_score_change"] > 0


def test_the_certificate_speaks_of_this_run(out):
    certificate = read_json(out / "run" / "certificate.json")
    evaluation = read_json(out / "run" / "evaluation.json")
    assert {role: certificate[role] for role in ("protected", "heldout")} == evaluation["drift"]
    assert certificate["kind"] == "nullspace"
    assert certificate["verdict"] == {"protected": "approximate", "heldout": "approximate"}
    assert len(certificate["modules"]) == 2 * 7
    assert all(module["leakage"] < 1e-6 for module in certificate["modules"].values())
    assert set(certificate["merges"]) == {"fp32", "bf16", "nf4"}
    merged = certificate["merges"]["fp32"]["heldout"]
    assert merged["max_score_change"] == pytest.approx(
        certificate["heldout"]["max_score_change"], rel=0.05, abs=1e-3
    )


def test_an_adapter_that_is_switched_off_for_the_ranking_is_certified_exact(world, out, tmp_path):
    again(world, out, tmp_path / "run", shield=ShieldSettings(kind="separate"))
    certificate = read_json(tmp_path / "run" / "certificate.json")
    assert certificate["verdict"] == {"protected": "exact", "heldout": "exact"}
    assert "merges" not in certificate


def test_an_activated_run_is_certified_exact(world, out, tmp_path):
    """Measured with the adapter awake after the prefix, in rankings and certificate alike."""
    init(
        base=world.base,
        out=tmp_path / "init",
        templates=world.templates,
        activated=True,
        lora_rank=4,
        lora_alpha=8,
    )
    train.main(
        data=world.data,
        ranker=world.ranker,
        base=world.base,
        adapter=tmp_path / "init",
        templates=world.templates,
        readout=out / "readout.safetensors",
        out=tmp_path / "whole" / "run",
        scratch=tmp_path / "scratch",
        dataset="books",
        variant="activated",
        prompt=world.prompt,
        roles=world.roles,
        settings=TRAINING,
        shield=ShieldSettings(kind="activated"),
        explanation_tokens=world.explanation_tokens,
        roles_seed=world.roles_seed,
        seed=5,
    )
    got = again(
        world,
        tmp_path / "whole",
        tmp_path / "run",
        shield=ShieldSettings(kind="activated"),
        readout=out / "readout.safetensors",
        bases=None,
    )
    certificate = read_json(tmp_path / "run" / "certificate.json")
    assert certificate["verdict"] == {"protected": "exact", "heldout": "exact"}
    assert certificate["prompts_with_invocation"] == 0
    assert "merges" not in certificate
    assert got["served_before"] == got["served_after"]
    assert got["text"]["words_before"] > 0
    rows = pl.DataFrame(read_jsonl(tmp_path / "run" / "explanations.jsonl"))
    texts = rows.partition_by("step", as_dict=True)
    assert texts[(0,)]["text"].to_list() != texts[(2,)]["text"].to_list()


def test_an_adapter_of_another_base_is_one_line_on_stderr(world, out, tmp_path):
    tokenizer = load_tokenizer(world.base)
    other = save_model(tiny_llama(len(tokenizer), layers=1), tokenizer, tmp_path / "other")
    run = shutil.copytree(out / "run", tmp_path / "run")
    (run / "evaluation.json").unlink()
    words = (
        f"rl evaluate {run_flags(world)} --base {other} --run {run} "
        f"--readout {out}/readout.safetensors {flags(SamplingSettings())} {flags(EVALUATION)}"
    )
    done = here(*words.split())
    assert done.returncode == 1
    # Libraries may warn before; the error is the last line, and one line.
    assert done.stderr.splitlines()[-1].startswith(
        f"python -m shielded_recrl.rl evaluate: error: {run / 'adapter'}: the adapter does not fit"
    )
    assert "Traceback" not in done.stderr
    assert not (run / "evaluation.json").exists()


def test_a_corrupted_readout_is_one_line(world, out, tmp_path):
    path = tmp_path / "readout.safetensors"
    path.write_bytes((out / "readout.safetensors").read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged") as caught:
        again(world, out, tmp_path / "run", readout=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train.jsonl", "snapshots.safetensors"])
def test_what_training_left_is_read_before_anything_is_computed(world, out, tmp_path, name):
    """Not even the base LM is looked at."""
    shutil.copytree(out / "run", tmp_path / "whole" / "run")
    (tmp_path / "whole" / "run" / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: not a readable") as caught:
        again(world, tmp_path / "whole", tmp_path / "run", base=tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_reviews_are_read_before_anything_is_computed(world, out, tmp_path):
    reviews = tmp_path / "reviews.parquet"
    reviews.write_bytes(b"PAR1 cut short")
    with pytest.raises(UserError, match=r"reviews\.parquet: no table with the columns"):
        again(world, out, tmp_path / "run", reviews=reviews, base=tmp_path / "nowhere")


@pytest.mark.parametrize("package", [None, "there"])
def test_bertscore_is_looked_at_before_anything_is_computed(
    world, out, tmp_path, monkeypatch, package
):
    monkeypatch.setattr(bertscore, "find_spec", lambda name: package)
    chosen = EVALUATION.model_copy(update={"bertscore_model": str(tmp_path / "model")})
    message = "no tokenizer in it" if package else "BERTScore needs the package bert-score"
    with pytest.raises(UserError, match=message):
        again(world, out, tmp_path / "run", settings=chosen, base=tmp_path / "nowhere")


def test_a_readout_of_another_base_is_one_line(world, out, tmp_path):
    path = tmp_path / "readout.safetensors"
    save_file({"weight": np.zeros((8, 64), "f4"), "gamma": np.array(1.0)}, path)
    with pytest.raises(UserError, match="readout") as caught:
        again(world, out, tmp_path / "run", readout=path)
    assert "\n" not in str(caught.value)
