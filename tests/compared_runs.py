"""Evaluated runs of dialogues, made up: `from compared_runs import evaluation, write_study`."""

from __future__ import annotations

from pathlib import Path

from shielded_recrl.dialogue.comparison.contestants import PAIRS, pair_name
from shielded_recrl.dialogue.comparison.text import SHOWN
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.files import sha256, write_json, write_jsonl

METRICS = (
    *(f"{form}bleu_{n}" for form in ("", "ecr_") for n in range(1, 5)),
    *(f"{form}distinct_{n}" for form in ("", "ecr_") for n in range(1, 5)),
    *("item_ratio", "ecr_item_ratio", "emotion_match", "words"),
)
TRAINED = (
    *("step", "reward", "reward_critic", "reward_format", "reward_support"),
    *("reward_repetition", "reward_copying", "kl", "entropy", "words", "ended"),
)
FAULTS = ("foreign", "shuffled", "repeated", "cut", "titles")
RECOMMENDERS = ("recommender", "stage1", "cooccurrence", "popularity", "copy")


def interval(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def part(**scores: float) -> dict:
    return {
        "scores": {judge: dict.fromkeys(HEADS, interval(mean)) for judge, mean in scores.items()},
        "text": dict.fromkeys(METRICS, interval(0.2)),
        "named": interval(0.05),
    }


def evaluation(critic: float = 0.05, unseen: float = 0.0, seed: int = 1) -> dict:
    """Of a run whose RL is so far above every other system."""
    recalls = {"recall@1": interval(0.04), "recall@10": interval(0.2), "targets": 9, "sha256": "f"}
    nobody = dict.fromkeys(SHOWN, 0)
    return {
        "seed": seed,
        "sampling_seed": 42,
        "synthetic": True,
        "turns": 3,
        "dialogues": 2,
        "temperature": 1.0,
        "judges": {
            "rules": {"taught": True, "unanswered": nobody},
            "unseen": {"taught": False, "unanswered": nobody},
        },
        "systems": {name: part(critic=0.5, rules=0.4, unseen=0.3) for name in SHOWN},
        "comparisons": {
            pair_name(*pair): part(critic=critic, rules=0.0, unseen=unseen) for pair in PAIRS
        },
        "kl": {
            "rl": {"per_token": interval(0.08), "per_response": interval(1.1)},
            "best_of_n": {"per_response_at_most": 0.636},
        },
        "samples": {
            "a_turn": {"supervised": 1, "best_of_n": 4, "rl": 1, "rl_best_of_n": 4},
            "training": 600,
            "even_after": 200.0,
        },
        "distance": {"norm": 1.25, "relative": 0.05, "layers": 21, "moved": 21},
        "recommendations": {"before": recalls, "after": dict(recalls), "equal": True},
        "inputs": {"base": "b", "supervised": "s", "critic": "c", "adapter": str(seed)},
        "training": {"settings_sha256": "t", "steps": 7, "samples": 600},
    }


def with_model(about: dict, judge: str, **differences: float) -> dict:
    """The same with a language model that judged, too, and left some responses without a score."""
    about["judges"][judge] = {"taught": False, "unanswered": dict.fromkeys(SHOWN, 0) | {"rl": 2}}
    for found in (*about["systems"].values(), *about["comparisons"].values()):
        found["scores"][judge] = dict.fromkeys(HEADS, interval(0.1))
    for name, mean in differences.items():
        pair = about["comparisons"][name.replace("_minus_", " - ")]
        pair["scores"][judge] = dict.fromkeys(HEADS, interval(mean))
    return about


def answered(dialogue: int, turn: int, text: str = "Try <movie>!", gain: float = 0.0) -> dict:
    """A row of responses.jsonl, in which `unseen` finds RL so much better."""
    said = ["Hi!", "Hello there.", "What is new?", "It is late."][:turn]
    roles = ("seeker", "recommender")
    one = {"text": text, "filled": text, "emotions": ["happy"]}
    scores = {"critic": 0.5, "rules": 0.4, "unseen": 0.3}
    return {
        "dialogue": dialogue,
        "turn": turn,
        "context": [{"role": roles[n % 2], "text": line} for n, line in enumerate(said)],
        "emotions": ["happy"],
        "recommended": ["Heat (1995)"],
        "responses": {
            name: one | {"overall": scores | ({"unseen": 0.3 + gain} if name == "rl" else {})}
            for name in SHOWN
        },
    }


def steps(count: int = 7) -> list[dict]:
    return [dict.fromkeys(TRAINED, 0.5 + n / 100) | {"step": n} for n in range(1, count + 1)]


def write_run(folder: Path, about: dict, rows: list[dict]) -> Path:
    """What `train` and `evaluate` leave of a run, as far as pages read it."""
    write_jsonl(folder / "responses.jsonl", rows)
    write_jsonl(folder / "train.jsonl", steps())
    write_evaluation(folder, about)
    return folder


def write_evaluation(folder: Path, about: dict) -> None:
    """evaluation.json of the responses and the log that lie there."""
    files = {name: sha256(folder / name) for name in ("responses.jsonl", "train.jsonl")}
    write_json(folder / "evaluation.json", about | {"files": files})


def critic_report() -> dict:
    return {
        "heads": {
            head: {"mse": 0.01, "mse_mean": 0.03, "gain": interval(0.02 + place / 100)}
            for place, head in enumerate(HEADS)
        },
        "corruptions": {
            fault: {"share": interval(0.6 + place / 20, 0.04), "pairs": 300}
            for place, fault in enumerate(FAULTS)
        },
        "learned_from": ["rules"],
        "model": "c",
    }


def new_films() -> dict:
    """Of the recommender's evaluation.json, the group `new`."""
    return {
        "targets": 260,
        "systems": {
            name: {"recall@10": interval(0.6 - place / 10, 0.05)}
            for place, name in enumerate(RECOMMENDERS)
        },
        "ahead_of": {
            name: {"recall@10": interval(place / 10, 0.04)}
            for place, name in enumerate(RECOMMENDERS)
            if name != "recommender"
        },
    }


def write_stages(folder: Path) -> tuple[Path, Path]:
    """evaluation.json of the recommender and report.json of the critic."""
    recommender, critic = folder / "recommender.json", folder / "critic.json"
    write_json(recommender, {"splits": {"test": {"new": new_films()}}})
    write_json(critic, critic_report())
    return recommender, critic
