"""Supervised, best of N and RL on test turns: numbers by hand, on a tiny policy, and what cannot move."""

import inspect
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import log_softmax

from chat_server import completion, listening
from command_line import here
from shielded_recrl.chat import KEY_VARIABLE, URL_VARIABLE
from shielded_recrl.dialogue import evaluate, train
from shielded_recrl.dialogue.comparison.contestants import GOLD, PAIRS, SYSTEMS, pair_name
from shielded_recrl.dialogue.comparison.recall import (
    named,
    new_targets,
    recall,
    served,
    statement,
)
from shielded_recrl.dialogue.comparison.scoring import means
from shielded_recrl.dialogue.comparison.systems import best, kl_bound, kl_to_supervised, respond
from shielded_recrl.dialogue.corpus.dialogues import Dialogues, Target
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.response.prompts import ResponsePrompts, load_recommendations
from shielded_recrl.dialogue.rl.policy import load_policy, new_policy, save_policy
from shielded_recrl.dialogue.settings import DialogueEvaluationSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl, sha256, write_json, write_jsonl
from shielded_recrl.rl.rollout import TransformersEngine
from shielded_recrl.settings import flags
from shielded_recrl.statistics import paired_bootstrap
from tiny_policy import PROMPT, TOKENS, TinyPolicy, move, write_policy

# What the tests share takes long to make: not among the last.
pytestmark = pytest.mark.slow

RESAMPLES = 20
CPU = torch.device("cpu")
SETTINGS = DialogueEvaluationSettings(test_turns=12, best_of=3, bootstrap=50)
RECOMMENDED = {(0, 1): (4, 2, 7), (0, 3): (5, 4), (1, 1): (9, 1)}
WANTED = [
    Target(0, 1, 2, False, 1),
    Target(0, 1, 9, False, 1),
    Target(0, 3, 5, False, 1),
    Target(1, 1, 1, False, 2),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyPolicy:
    return write_policy(tmp_path_factory.mktemp("policy"))


def a_run(world: TinyPolicy, folder: Path, by: float) -> Path:
    """The folder of a policy that was moved by hand."""
    model = new_policy(world.base, world.supervised, 4, 8, seed=0, device=CPU)
    move(model, by)
    save_policy(model, world.base, world.supervised, folder / "adapter")
    tables = world.tables
    recall = served(tables.recommendations, Dialogues.load(tables.data), RESAMPLES)
    inputs = tables.inputs(world.base, PROMPT, response_tokens=TOKENS)
    read = {
        **inputs.files(),
        "supervised": world.supervised,
        "critic": world.critic,
    }
    write_json(
        folder / "summary.json",
        {
            **{"seed": 9, "steps": 3, "samples": 90, "settings_sha256": "s"},
            "form": inputs.form(),
            "inputs": {name: sha256(path) for name, path in read.items()},
            "recall": {"before": recall, "after": recall},
        },
    )
    write_jsonl(folder / "train.jsonl", [{"step": 1}])
    return folder


def evaluated(world: TinyPolicy, run: Path, settings=SETTINGS, taught=("rules",)):
    """Run the command; answers of language models and the critic's report lie beside the run."""
    report = run.parent / f"{run.name}-critic.json"
    about = {"learned_from": taught, "heads": {}, "corruptions": {}, "dialogues": {"valid": 1}}
    write_json(report, about | {"model": sha256(world.critic)})
    words = (
        f"evaluate {world.flags} --run {run} --critic-report {report} "
        f"--scratch {run.parent / 'scratch'} --labels.source lexicon {flags(settings)}"
    )
    return here("dialogue", *shlex.split(words))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    run = a_run(world, tmp_path_factory.mktemp("run") / "seed-5", 0.3)
    done = evaluated(world, run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run}: 12 turns")
    return run


def test_the_files_and_keys_of_an_evaluation(run):
    assert sorted(path.name for path in run.iterdir()) == [
        *("adapter", "evaluation.json", "responses.jsonl", "summary.json", "train.jsonl")
    ]
    got = read_json(run / "evaluation.json")
    assert got["systems"].keys() == {*SYSTEMS, GOLD}
    assert got["comparisons"].keys() == {pair_name(*pair) for pair in PAIRS}
    for part in (*got["systems"].values(), *got["comparisons"].values()):
        assert part["scores"].keys() == {"critic", "rules", "unseen"}
        for heads in part["scores"].values():
            assert heads.keys() == set(HEADS)
            assert all(one["low"] <= one["mean"] <= one["high"] for one in heads.values())
    assert {"bleu_4", "ecr_bleu_4", "distinct_2", "item_ratio", "emotion_match", "words"} < got[
        "systems"
    ]["rl"]["text"].keys()
    assert "bleu_4" not in got["systems"][GOLD]["text"]
    assert got["samples"] == {
        "a_turn": {"supervised": 1, "rl": 1, "best_of_n": 3, "rl_best_of_n": 3},
        "training": 90,
        "even_after": 45,
    }
    assert got["judges"] == {
        name: {"taught": name == "rules", "unanswered": dict.fromkeys((GOLD, *SYSTEMS), 0)}
        for name in ("rules", "unseen")
    }
    assert got["seed"] == 9
    assert got["sampling_seed"] == 5
    assert got["training"] == {"settings_sha256": "s", "steps": 3, "samples": 90}
    assert got["files"] == {name: sha256(run / name) for name in ("responses.jsonl", "train.jsonl")}
    assert got["distance"]["norm"] > 0
    assert got["kl"]["rl"]["per_token"]["low"] > 0
    assert got["kl"]["best_of_n"]["per_response_at_most"] == pytest.approx(math.log(3) - 2 / 3)


def test_the_numbers_are_those_of_the_responses(run):
    got, rows = read_json(run / "evaluation.json"), read_jsonl(run / "responses.jsonl")
    assert len(rows) == 12
    clusters = np.array([row["dialogue"] for row in rows])
    for judge in ("critic", "rules", "unseen"):
        values = {
            name: np.array([row["responses"][name]["overall"][judge] for row in rows])
            for name in (*SYSTEMS, GOLD)
        }
        for one, other in PAIRS:
            want = paired_bootstrap(values[one] - values[other], 50, 5, clusters)
            assert got["comparisons"][pair_name(one, other)]["scores"][judge]["overall"] == (
                pytest.approx(want._asdict(), abs=1e-6)
            )
    # The critic chose: no sample that stands alone is above the best of N in its eyes.
    for row in rows:
        scores = {name: one["overall"]["critic"] for name, one in row["responses"].items()}
        assert scores["best_of_n"] >= scores["supervised"] - 1e-6
        assert scores["rl_best_of_n"] >= scores["rl"] - 1e-6
    assert any(row["responses"]["rl"] != row["responses"]["supervised"] for row in rows)


def test_slots_are_filled_with_what_each_meant(world, run):
    """Those of the person with the films that the person named, all others with recommended ones."""
    dialogues = {one.index: one for one in Dialogues.load(world.tables.data).all}
    rows = read_jsonl(run / "responses.jsonl")
    others = 0
    for row in rows:
        assert len(row["recommended"]) == len(row["recommended_items"]) == 10
        for name, one in row["responses"].items():
            turn = dialogues[row["dialogue"]].turns[row["turn"]]
            slots = one["text"].count("<movie>")
            items = list(turn.items) if name == GOLD else row["recommended_items"][:slots]
            assert [film["item"] for film in one["films"]] == items
            titles = [f"Film {item} ({1980 + item})" for item in items]
            assert [film["title"] for film in one["films"]] == titles
            assert one["filled"] == one["text"].replace("<movie>", "{}").format(*titles)
            others += name == GOLD and items != row["recommended_items"][:slots]
    assert others


def test_the_same_evaluation_gives_the_same_bytes(world, run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    assert evaluated(world, again).returncode == 0
    for name in ("evaluation.json", "responses.jsonl"):
        assert (again / name).read_bytes() == (run / name).read_bytes()


def test_response_rl_cannot_move_stage_2(world, run, tmp_path):
    path = world.tables.recommendations
    before = path.read_bytes()
    far = a_run(world, tmp_path / "far", 2.0)
    assert evaluated(world, far).returncode == 0
    assert path.read_bytes() == before
    one, other = (read_json(folder / "evaluation.json") for folder in (run, far))
    # Two policies that say different things, and one recommender.
    assert one["systems"]["rl"] != other["systems"]["rl"]
    assert one["recommendations"] == other["recommendations"]
    assert one["recommendations"]["equal"] is True
    recalls = one["recommendations"]
    assert recalls["before"]["sha256"] == recalls["after"]["sha256"] == sha256(path)
    # Before is what training found, now is what evaluation finds.
    assert recalls["before"] == read_json(run / "summary.json")["recall"]["before"]
    assert recalls["before"]["recall@10"]["mean"] == recalls["after"]["recall@10"]["mean"]
    # Both commands are given what was recommended, and nothing of what recommends.
    for command in (train.main, evaluate.main):
        assert not {"recommender", "fusion"} & set(inspect.signature(command).parameters)


def test_recall_is_that_of_the_table_by_hand(world, run):
    dialogues = Dialogues.load(world.tables.data)
    table = pl.read_parquet(world.tables.recommendations)
    rows = set(table.select("dialogue", "turn", "item").iter_rows())
    films = load_recommendations(world.tables.recommendations, dialogues)
    wanted = new_targets(dialogues.split("test"), films)
    hits = [(one.dialogue, one.turn, one.item) in rows for one in wanted]
    got = read_json(run / "evaluation.json")["recommendations"]["after"]
    assert got["recall@10"]["mean"] == pytest.approx(sum(hits) / len(hits))
    assert got["targets"] == len(wanted) == len({*wanted})
    assert not any(one.is_repeat for one in wanted)


def test_recall_and_named_by_hand():
    found = recall(RECOMMENDED, WANTED, 20, 0)
    assert found["recall@1"]["mean"] == 0.25
    assert found["recall@10"]["mean"] == 0.75
    assert found["targets"] == 4
    texts = {(0, 1): "<movie> or <movie>", (0, 3): "hello", (1, 1): "<movie>"}
    values, where = named(RECOMMENDED, WANTED, texts)
    assert values.tolist() == [1, 0, 0, 0]
    assert where.tolist() == [0, 0, 0, 1]
    values, _ = named(RECOMMENDED, WANTED, {(1, 1): "<movie> <movie> <movie>"})
    assert values.tolist() == [1]
    with pytest.raises(UserError, match="no new film"):
        recall(RECOMMENDED, [], 20, 0)


def test_a_recommender_that_moved_meanwhile_is_noticed():
    before = {"recall@1": {"mean": 0.1, "low": 0.0}, "targets": 3, "sha256": "a"}
    # Intervals may be of other resamples.
    assert statement(before, before | {"recall@1": {"mean": 0.1, "low": 0.05}}, Path("r"))["equal"]
    for change in ({"sha256": "b"}, {"recall@1": {"mean": 0.2, "low": 0.0}}, {"targets": 4}):
        with pytest.raises(UserError, match=r"r\.parquet: changed since the policy was trained"):
            statement(before, before | change, Path("r.parquet"))


@pytest.mark.parametrize("name", ["recommendations", "base", "supervised", "critic", "turns"])
def test_what_the_policy_was_not_trained_with_is_refused(world, tmp_path, name):
    run = a_run(world, tmp_path / "run", 0.3)
    summary = read_json(run / "summary.json")
    summary["inputs"][name] = "0" * 64
    write_json(run / "summary.json", summary)
    done = evaluated(world, run)
    assert done.returncode == 1
    assert f"not the {name} that {run} was trained with" in done.stderr.strip().splitlines()[-1]
    assert not (run / "evaluation.json").exists()


def test_lengths_of_another_training_are_refused(world, tmp_path):
    run = a_run(world, tmp_path / "run", 0.3)
    summary = read_json(run / "summary.json")
    summary["form"]["prompt_tokens"] += 1
    write_json(run / "summary.json", summary)
    done = evaluated(world, run)
    assert done.returncode == 1
    assert f"--prompt-tokens: 64, but {run} was trained with 65" in done.stderr


def test_the_report_of_another_critic_is_refused(world, tmp_path):
    write_json(
        tmp_path / "report.json",
        {"learned_from": ["rules"], "heads": {}, "corruptions": {}, "model": "0" * 64},
    )
    with pytest.raises(UserError, match=r"report\.json: the report of another critic"):
        evaluate.teachers(tmp_path / "report.json", world.critic)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; run `python -m shielded_recrl.dialogue train`"),
        ('{"seed": 1, "samples": 90, "recall": {}}', "no inputs; run"),
        ("[]", "no seed; run"),
        ("{", "summary.json"),
    ],
)
def test_a_run_without_a_sound_summary_is_one_line(world, tmp_path, text, message):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    done = evaluated(world, tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]


def grades(body):
    """Grades by what the response is, and no grades of one that names two films."""
    said = body["messages"][1]["content"].rsplit("response: ", 1)[1]
    if said.count("movie") > 1:
        return completion("I would rather not.")
    return completion("\n".join(f"{head}: {1 + len(said) % 5}" for head in HEADS))


def test_language_models_judge_the_comparison(world, run, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    asked = tmp_path / "run"
    shutil.copytree(run, asked)
    with listening() as serving:
        serving.reply = lambda body: (200, {}, grades(body))
        with_models = SETTINGS.model_copy(update={"models": ("org/M", "B"), "url": serving.url})
        done = evaluated(world, asked, with_models, taught=("rules", "org_m"))
        assert done.returncode == 0, done.stderr
        paid = len(serving.asked)
        whole = (asked / "evaluation.json").read_bytes()
        # What was answered is not asked again.
        assert evaluated(world, asked, with_models, taught=("rules", "org_m")).returncode == 0
        assert len(serving.asked) == paid
    assert (asked / "evaluation.json").read_bytes() == whole
    got, before = read_json(asked / "evaluation.json"), read_json(run / "evaluation.json")
    assert {name for name, one in got["judges"].items() if one["taught"]} == {"rules", "org_m"}
    rows = read_jsonl(asked / "responses.jsonl")
    scores = {
        name: [row["responses"][name]["overall"]["b"] for row in rows] for name in (GOLD, *SYSTEMS)
    }
    counts = {name: of.count(None) for name, of in scores.items()}
    assert counts == got["judges"]["b"]["unanswered"]
    assert 0 < counts[GOLD] < len(rows)
    # Left out pair by pair, and of this judge alone.
    clusters = [row["dialogue"] for row in rows]
    for one, other in PAIRS:
        both = [
            (x - y, dialogue)
            for x, y, dialogue in zip(scores[one], scores[other], clusters, strict=True)
            if x is not None and y is not None
        ]
        values, where = np.array(both).T
        want = paired_bootstrap(values, 50, 5, where)._asdict()
        found = got["comparisons"][pair_name(one, other)]["scores"]
        assert found["b"]["overall"] == pytest.approx(want)
        assert found["b"] == found["org_m"]
        same = before["comparisons"][pair_name(one, other)]["scores"]
        assert {name: found[name] for name in same} == same
    write_jsonl(asked / "train.jsonl", [{"step": 1}])
    shown = here("dialogue", "compare", "--runs", str(asked))
    assert "overall, org_m" in shown.stdout, shown.stderr


def test_models_are_checked_before_anything_is_sampled(world, tmp_path, monkeypatch):
    def sampled(*_, **__):
        pytest.fail("sampled first")

    monkeypatch.setattr(evaluate, "respond", sampled)
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    run = a_run(world, tmp_path / "run", 0.3)
    for models, message in ((("unseen",), "dialogue.evaluation.models"), (("m",), URL_VARIABLE)):
        done = evaluated(world, run, SETTINGS.model_copy(update={"models": models}))
        assert done.returncode == 1
        assert message in done.stderr.strip().splitlines()[-1]


def test_a_judge_of_fewer_than_two_dialogues_has_no_number():
    scores = np.array([[0.5], [0.7], [np.nan], [np.nan]]).repeat(len(HEADS), axis=1)
    where = np.array([1, 1, 2, 3])
    assert means({"m": scores}, where, 20, 0) == {"m": dict.fromkeys(HEADS)}
    scores[2] = 0.6
    assert means({"m": scores}, where, 20, 0)["m"]["overall"]["mean"] == pytest.approx(0.6)


def test_a_policy_that_never_moved_is_refused(world, tmp_path):
    done = evaluated(world, a_run(world, tmp_path, 0.0))
    assert done.returncode == 1
    assert "the policy's weights are those of the supervised LM" in done.stderr
    assert not (tmp_path / "evaluation.json").exists()


def test_the_best_is_the_first_of_the_highest():
    texts = [["b", "ccc", "ddd"], ["e", "f", "g"]]
    score = lambda said, of: np.array([len(text) for text in said])  # noqa: E731
    assert best(texts, score) == ["ccc", "e"]
    assert best(texts, lambda said, of: np.array(of) * 1.0) == ["b", "e"]


def test_the_bound_of_best_of_n_holds_where_it_can_be_computed():
    # Of 50 equally likely responses in an order of merit, the best of N is k with these chances.
    for n in (2, 4, 16):
        ends = (np.arange(51) / 50) ** n
        chances = np.diff(ends)
        kl = float((chances * np.log(chances * 50)).sum())
        assert 0 < kl <= kl_bound(n)


@pytest.fixture(scope="module")
def policy(world, run):
    return load_policy(world.base, world.supervised, run / "adapter", device=CPU)


@pytest.fixture(scope="module")
def asked(world):
    prompts = ResponsePrompts.load(*vars(world.tables).values(), world.base, PROMPT)
    return prompts, [prompts.ids(request) for request in prompts.requests("test")[:5]]


def test_kl_is_the_sum_over_tokens_of_that_between_distributions(policy, asked):
    prompts, ids = asked
    uniforms = torch.rand(
        5, TOKENS, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    engine = TransformersEngine(prompts.tokenizer)
    rollout = engine(policy, ids, [len(row) for row in ids], uniforms, 0.8)
    got = kl_to_supervised(policy, rollout, 0.8)
    for row, prompt in enumerate(ids):
        length = int(rollout.response[row].sum())
        whole = torch.tensor([[*prompt, *rollout.tokens[row][:length].tolist()]])
        with torch.no_grad():
            mine = policy(input_ids=whole).logits[0, len(prompt) - 1 : -1] / 0.8
            with policy.disable_adapter():
                other = policy(input_ids=whole).logits[0, len(prompt) - 1 : -1] / 0.8
        p, q = (log_softmax(part.double().numpy(), axis=-1) for part in (mine, other))
        assert got[row] == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-3, abs=1e-4)
    assert (got > 0).all()


def test_the_supervised_lm_answers_where_the_adapter_is_off(world, policy, asked):
    prompts, ids = asked
    same = {"samples": 2, "response_tokens": TOKENS, "temperature": 1.0, "seed": 3}
    off = respond(policy, prompts.tokenizer, ids, adapter=False, **same)
    fresh = new_policy(world.base, world.supervised, 4, 8, seed=9, device=CPU)
    # A policy yet to be trained is the supervised one, and equal numbers give equal responses.
    assert respond(fresh, prompts.tokenizer, ids, adapter=True, **same).texts == off.texts
    on = respond(policy, prompts.tokenizer, ids, adapter=True, **same)
    assert on.texts != off.texts
    assert not off.kl.any()
    assert on.kl.all()
    # The first samples do not depend on how many there are.
    one = respond(policy, prompts.tokenizer, ids, adapter=True, **same | {"samples": 1})
    assert [row[0] for row in on.texts] == [row[0] for row in one.texts]
    assert any(row[0] != row[1] for row in on.texts)


def test_an_adapter_of_another_supervised_one_is_one_line(world, run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    write_json(other / "adapter/over.json", {"supervised": "0" * 64})
    done = evaluated(world, other)
    assert done.returncode == 1
    assert "not an adapter over" in done.stderr.strip().splitlines()[-1]
