"""A change reruns what depends on it, and nothing else."""

import re

import pytest
import yaml

pytestmark = pytest.mark.slow

LIBRARY = "workflow/shielded_recrl"
# What looks at all runs together, and so runs again with any of them.
SUMMARY = {
    "summarise_audits": "Judge all audits by resources/policy.yaml",
    "aggregate": "Collect all runs into results/aggregate_results.csv, figures and tables",
    "significance": "Test every variant against shielded",
    "criteria": "Judge the success criteria",
    "pages": "Turn the pages of the report into HTML",
    "manifest": "List every artefact with its checksum in results/manifest.json",
    "all": "Table, figures, pages and release folders are up to date",
}
ONCE = dict.fromkeys(SUMMARY, 1)


def again(runs):
    """Jobs that follow the training of so many runs."""
    after = ("train_policy", "evaluate_policy", "probe_policy", "audit_policy", "model_card")
    return dict.fromkeys(after, runs) | ONCE


def jobs_of(name):
    """Messages of the jobs of one run."""
    return {f"{does} {name}" for does in ("Train", "Evaluate", "Probe", "Audit")} | {
        f"Write the model card of {name}"
    }


def test_another_folder_comments_docstrings_layout_and_machine_settings_rerun_nothing(twin):
    """Which of them did, is the reason that Snakemake gives: mtime, code or params."""
    twin.folder.rename(twin.folder.with_name("moved"))
    moved = type(twin)(twin.folder.with_name("moved"))
    for path in (moved.folder / LIBRARY).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r'\A"""', '"""Said in other words. ', text)
        text = re.sub(r"^def ", "# Why it is so.\n\n\ndef ", text, flags=re.MULTILINE)
        path.write_text(text + "\n\n# The end.\n", encoding="utf-8")
    assert "Why it is so" in moved.read(f"{LIBRARY}/rl/ppo.py")
    plan = moved.run("-n", changes={"resources": {"threads": 2, "mem_mb": 900, "gpu": 1}})
    assert "Nothing to be done" in plan.stdout + plan.stderr, plan.stdout


def test_ppo_maths_rerun_training_and_what_follows(twin):
    twin.edit(
        f"{LIBRARY}/rl/ppo.py",
        "rewards = -kl_weight * k1(logp, reference)",
        "rewards = -2 * kl_weight * k1(logp, reference)",
    )
    assert twin.plan().rules == again(3)


def test_read_out_reruns_what_measures_drift_on_it(twin):
    plan = twin.plan(changes={"ranking": {"weight_decay": 0.2}})
    assert plan.rules == {"fit_readout": 2} | again(3)


def test_basis_setting_leaves_runs_without_bases_alone(twin):
    plan = twin.plan(changes={"shield": {"energy": 0.99}})
    assert plan.rules["train_policy"] == plan.rules["evaluate_policy"] == 2
    assert not [job for job in plan.jobs if "no_proj" in job]


def test_dataset_setting_reruns_that_dataset_alone(twin):
    plan = twin.plan(changes={"datasets": {"books": {"min_weight": 3}}})
    assert plan.rules == {
        "prepare": 1,
        "train_ranker": 1,
        "evaluate_ranker": 1,
        "pretrain": 1,
        "init_lora": 1,
        "fit_readout": 1,
        "collect_bases": 1,
    } | again(2)
    others = plan.jobs.keys() - SUMMARY.values()
    assert [job for job in others if "books" not in job] == []


def test_new_seed_and_setting_of_one_variant_add_their_own_jobs(twin):
    study = yaml.safe_load(twin.read("tests/tiny.yaml"))["study"]
    study.append({"dataset": "books", "variants": ["shielded"], "seeds": [2]})
    variants = {"no_proj": {"rl": {"kl_weight": 0.1}}}
    plan = twin.plan(changes={"study": study, "variants": variants})
    runs = jobs_of("no_proj on books, seed 1") | jobs_of("shielded on books, seed 2")
    assert plan.jobs.keys() == {*SUMMARY.values()} | runs
    assert set(plan.jobs.values()) == {1}


def test_margin_of_the_report_reruns_the_table(twin):
    plan = twin.plan(changes={"report": {"ndcg_margin": 0.02}})
    once = ("aggregate", "criteria", "pages", "manifest", "all")
    assert plan.rules == dict.fromkeys(once, 1)


def test_policy_reruns_the_verdicts_and_no_audit(twin):
    twin.edit("resources/policy.yaml", "below: 0.20", "below: 0.19")
    once = ("summarise_audits", "aggregate", "criteria", "pages", "manifest", "all")
    assert twin.plan().rules == dict.fromkeys(once, 1)
