"""The evidence of the dialogue branch: its config is one, and its table says what the reports say."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from shielded_recrl.config import load_config
from shielded_recrl.files import write_json

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "benchmarks/dialogue_evidence"


@pytest.fixture(scope="module")
def evidence():
    spec = importlib.util.spec_from_file_location("dialogue_evidence", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def about(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def evaluation(seed, gain):
    """What the table reads of evaluation.json."""
    scores = {judge: {"overall": about(gain)} for judge in ("critic", "rules", "unseen")}
    recall = {"recall@10": about(0.17)}
    return {
        "seed": seed,
        "systems": {"rl": {"scores": scores}},
        "comparisons": {name: {"scores": scores} for name in ("rl - supervised", "rl - best_of_n")},
        "distance": {"layers": 21, "moved": 20, "relative": 0.125},
        "kl": {"rl": {"per_token": about(0.13)}},
        "recommendations": {"before": recall, "after": recall},
    }


@pytest.fixture
def run(tmp_path):
    """Results of a run, as far as they are read."""
    recalls = {f"recall@{k}": about(k / 100) for k in (1, 10, 50)}
    counts = dict.fromkeys(
        ("dialogues", "turns", "mentions", "repeats", "liked", "disliked", "not_said"), 1234
    )
    accuracy = {"accuracy": about(0.6), "macro_f1": about(0.5)}
    new = {
        "targets": 3542,
        "dialogues": 989,
        "systems": {"recommender": recalls, "cooccurrence": recalls},
        "ahead_of": {"cooccurrence": recalls},
    }
    documents = {
        "data/stats.json": {"splits": {"train": counts}, "kept_out": {"a.jsonl": {"no turns": 3}}},
        "emotion/report.json": {
            "test": dict.fromkeys(("classifier", "lexicon", "majority"), accuracy)
        },
        "recommender/evaluation.json": {"splits": {"test": {"new": new}}},
        "critic/report.json": {
            "heads": {"empathy": {"mse": 0.1, "mse_mean": 0.2, "gain": about(0.1)}},
            "corruptions": {"cut": {"pairs": 1200, "share": about(0.9)}},
        },
        "report/comparison.md": {},
        "rl/seed-9/evaluation.json": evaluation(9, 0.05),
        "rl/seed-10/evaluation.json": evaluation(10, -0.02),
        "response/supervised/adapter_config.json": {},
    }
    results = tmp_path / "results"
    for name, document in documents.items():
        write_json(results / "dialogue" / name, document)
    benchmark = results / "benchmarks/dialogue/rl/seed-9/train.tsv"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("s\tmax_rss\tcpu_time\n9\t700.5\t1234.4\n")
    return results


def test_config_is_one_wherever_the_data_are(evidence):
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    update_config(values, yaml.safe_load(evidence.CONFIG.read_text()))
    config = load_config(values)
    assert config.dialogue.seeds == (42, 43, 44)
    update_config(values, {"dialogue": evidence.paths(Path("/data"))})
    there = load_config(values)
    assert there.dialogue.data.source == "/data/redial"
    # Nothing else is changed.
    update_config(values, {"dialogue": evidence.paths(Path("resources/raw"))})
    assert load_config(values) == config


def test_reports_are_kept_and_models_are_not(evidence, run, tmp_path):
    out = tmp_path / "kept"
    write_json(out / "rl/seed-8/evaluation.json", evaluation(8, 0.0))
    evidence.keep(run, out)
    kept = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert kept == {
        *("data/stats.json", "emotion/report.json", "critic/report.json", "report/comparison.md"),
        *("recommender/evaluation.json", "rl/seed-9/evaluation.json", "rl/seed-10/evaluation.json"),
        "times.csv",
    }
    assert (out / "times.csv").read_text() == (
        "job,cpu_seconds,peak_mb\nrl/seed-9/train,1234.4,700.5\n"
    )


def test_table_says_what_the_reports_say(evidence, run, tmp_path):
    out = tmp_path / "kept"
    evidence.keep(run, out)
    lines = evidence.tables(out)
    assert (
        "| recommender | 0.010 [0.000, 0.020] | 0.100 [0.090, 0.110] | 0.500 [0.490, 0.510] |"
        in lines
    )
    assert "| empathy | 0.1000 | 0.2000 | +0.100 [+0.090, +0.110] |" in lines
    assert "| cut | 1,200 | 0.900 [0.890, 0.910] |" in lines
    assert "| judge | seed 9 | seed 10 |" in lines
    assert "| unseen | +0.050 [+0.040, +0.060] | -0.020 [-0.030, -0.010] |" in lines
    assert any(line.startswith("| 9 | 20 of 21 | 12.5% | 0.130 ") for line in lines)
    assert "Kept out: 3 no turns (a.jsonl)." in lines
    assert "| rl/seed-9/train | 1,234 | 700 |" in lines


@pytest.mark.skipif(not (HERE / "table.md").exists(), reason="not measured yet")
def test_table_is_that_of_the_files_beside_it(evidence):
    assert (HERE / "table.md").read_text() == "\n".join(evidence.tables(HERE)) + "\n"
