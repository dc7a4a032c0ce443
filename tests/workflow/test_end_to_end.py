"""From raw data to the table: complete and finished; test_chaos.py says what faults change."""

import csv

import pytest

from shielded_recrl.files import read_json
from shielded_recrl.markdown import in_cell
from shielded_recrl.report.verify import check, read_manifest

pytestmark = pytest.mark.slow

RUNS = [("books", "shielded", "1"), ("books", "no_proj", "1"), ("steam", "shielded", "1")]
FIGURES = (
    *("ctr_over_steps", "ndcg_over_steps", "ablation", "frontier", "overoptimisation"),
    *("quality_weight", "calibration", "texts", "audits"),
)


def rows(copy):
    return list(csv.DictReader(copy.read("results/aggregate_results.csv").splitlines()))


def test_table_has_one_whole_row_a_run(tiny, assert_whole):
    table = rows(tiny)
    assert [(row["dataset"], row["variant"], row["seed"]) for row in table] == RUNS
    for row in table:
        assert_whole(row)
        assert row["synthetic"] == "true"
    assert float(table[0]["ranker_ndcg@10"]) > 0
    assert table[0]["served_before_ndcg@10"] == table[1]["served_before_ndcg@10"]


def test_training_moved_the_text_and_the_shield_held_the_protected_ranking(tiny):
    shielded, free, _ = rows(tiny)
    assert float(free["kl"]) > 0
    protected = "drift_protected_max_score_change"
    assert float(shielded[protected]) < 0.2 * float(free[protected])


def test_figures_tables_logs_and_benchmarks_are_there(tiny):
    report = tiny.folder / "results/report"
    for name in FIGURES:
        assert (report / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (report / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
    page = (report / "certificates.md").read_text()
    for dataset, variant, seed in RUNS:
        run = f"results/rl/{dataset}/{variant}/seed-{seed}"
        sentence = in_cell(read_json(tiny.folder / run / "certificate.json")["sentence"])
        names = f"| {dataset} | `{variant}` | {seed} |"
        assert any(line.startswith(names) and sentence in line for line in page.splitlines())
    for name in ("results", "drift", "significance"):
        assert r"\begin{tabular}" in (report / f"tables/{name}.tex").read_text()
    for stage in ("data", "ranker", "explainer", "shield", "rl", "audit", "report"):
        logs = list((tiny.folder / "results/logs" / stage).rglob("*.log"))
        tables = list((tiny.folder / "results/benchmarks" / stage).rglob("*.tsv"))
        assert len(logs) == len(tables) > 0
        assert all(log.stat().st_size for log in logs)


def test_nothing_half_written_and_no_checkpoint_is_left(tiny):
    files = [path for path in (tiny.folder / "results").rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if path.suffix == ".partial"]
    assert not [path for path in files if path.name == "checkpoint.safetensors"]


def test_second_run_has_nothing_to_do(twin):
    assert "Nothing to be done" in twin.run().stderr


def test_results_are_those_of_the_manifest(tiny):
    path = tiny.folder / "results/manifest.json"
    listed = read_manifest(path)
    assert {"aggregate_results.csv", "success_criteria.csv", "audit/audit.json"} <= listed.keys()
    assert check(tiny.folder / "results", listed, path) == []


def test_every_criterion_has_a_verdict_on_every_dataset(tiny):
    table = list(csv.DictReader(tiny.read("results/success_criteria.csv").splitlines()))
    names = {row["criterion"] for row in table}
    assert {"ctr_rises_claims", "ctr_rises_examination", "ndcg_flat", "policy_holds"} < names
    assert len(table) == 2 * len(names)
    assert {row["verdict"] for row in table} <= {"met", "failed", "not evaluable"}
    audited = [row for row in table if row["criterion"] == "audits_exist"]
    assert {row["verdict"] for row in audited} == {"met"}


def test_gate_names_what_breaks_the_policy_and_writes_nothing(twin):
    # 0.1% of the texts may offend: no audit of so few can show that.
    twin.edit("resources/policy.yaml", "below: 0.20", "below: 0.001")
    stopped = twin.run("results/audit/passed", check=False)
    assert stopped.returncode != 0
    assert "breaks toxicity_mean < 0.001" in stopped.stdout + stopped.stderr
    assert not (twin.folder / "results/audit/passed").exists()
