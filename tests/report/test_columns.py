"""Columns, their documentation, and what a cell may hold."""

import csv
import math
from pathlib import Path

import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report.aggregate import to_csv
from shielded_recrl.report.columns import ALL_COLUMNS, TIMINGS, as_text, quarter_mean, row
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings

DOCS = Path(__file__).resolve().parents[2] / "docs" / "report.md"
SETTINGS = TableSettings()
# Empty where the source has no reviews.
REFERENCED = [
    f"{score}_{which}"
    for score in ("bleu_1", "bleu_4", "rouge_1", "rouge_2", "rouge_l")
    for which in ("before", "after", "shuffled", "constant")
]


def change(study, keys, value, file="evaluation.json"):
    """Set a key deep in a file of the first run."""
    path = study.runs[0] / file
    document = read_json(path)
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json(path, document)


def first_row(study):
    runs = load_runs(study.runs[:1], study.audits, study.stats)
    return row(runs[0], SETTINGS)


def test_the_documentation_lists_every_column_in_order():
    text = DOCS.read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| `")]
    expected = [
        f"| `{column.name}` | {column.description} | {column.empty or ''} |".replace("|  |", "| |")
        for column in ALL_COLUMNS
    ]
    assert [line for line in table if line in expected] == expected


def test_names_are_unique_and_timings_come_last():
    names = [column.name for column in ALL_COLUMNS]
    assert len(set(names)) == len(names)
    assert names[-len(TIMINGS) :] == ["seconds", "peak_memory_mb"]


@pytest.mark.parametrize(
    ("values", "first", "last"),
    [([3.0], 3, 3), ([1, 2, 3, 4], 1, 4), (list(range(8)), 0.5, 6.5), (list(range(7)), 0, 6)],
)
def test_quarters(values, first, last):
    assert quarter_mean(values, last=False) == first
    assert quarter_mean(values, last=True) == last


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 / 3, "0.333333"), (1234567.0, "1.23457e+06"), (-0.0, "0"), (False, "false"), (7, "7")],
)
def test_cells_have_six_significant_digits(value, text):
    assert as_text(value) == text


def test_a_row_takes_its_values_from_the_files(study):
    values = first_row(study)
    evaluation = read_json(study.runs[0] / "evaluation.json")
    assert values["drift_heldout_kendall_tau"] == evaluation["drift"]["heldout"]["kendall_tau"]
    assert values["served_after_hr@10"] == evaluation["served_after"]["hr@10"]
    assert values["ndcg_change_low"] == evaluation["ndcg_change"]["low"]
    # Rewards are 0.41 ... 0.64 in steps of 0.01; a quarter is six of them.
    assert values["reward_first"] == pytest.approx(0.435)
    assert values["reward_last"] == pytest.approx(0.615)
    reward = evaluation["reward"]
    assert values["heldout_reward_before"] == 0.42
    assert values["heldout_reward_after"] == reward["after"]
    assert values["heldout_reward_gain_low"] == reward["gain_low"]
    assert values["drift_heldout_top10_changed"] == 102 / 128
    assert values["drift_heldout_top10_changed_high"] == 102 / 128 + 0.06
    assert values["certificate_heldout"] == "approximate"
    claims = evaluation["claims"]
    assert values["claim_precision_after"] == claims["precision_after"]
    assert values["claim_precision_change_low"] == claims["change_low"]
    assert values["claims_before"] == claims["named_before"]
    assert values["unique_after"] == evaluation["text"]["unique_after"]
    assert values["published_share"] == evaluation["ctr"]["published_share"]
    assert values["ctr_from_empty"] == evaluation["ctr"]["from_empty"]
    assert values["gold_fall_high"] == evaluation["overoptimisation"]["gold_fall_high"]
    assert values["overoptimised"] is False
    assert values["users"] == 3726
    assert values["notes"].startswith("merged_nf4_top10_identical, merged_nf4_max_score_change: ")
    assert not any(isinstance(v, float) and not math.isfinite(v) for v in values.values())


@pytest.mark.parametrize(
    ("low", "high", "unchanged"),
    [(-0.01, 0.01, True), (-0.0101, 0.0, False), (0.0, 0.0101, False), (0.001, 0.002, True)],
)
def test_unchanged_means_the_whole_interval_lies_in_the_margin(study, low, high, unchanged):
    change(study, ["ndcg_change"], {"mean": (low + high) / 2, "low": low, "high": high})
    assert first_row(study)["ndcg_unchanged"] is unchanged


def test_an_undefined_value_is_explained(study):
    change(study, ["drift", "heldout", "kendall_tau"], None)
    for key in ("lift_share", "lift_share_low"):
        change(study, ["ctr", key], None)
    change(study, ["claims", "change"], None)
    values = first_row(study)
    assert values["drift_heldout_kendall_tau"] is None
    assert values["rouge_l_after"] is None
    assert values["notes"].split("; ") == [
        "drift_heldout_kendall_tau: a ranking without two different scores has no order",
        "merged_nf4_top10_identical, merged_nf4_max_score_change: not measured: bitsandbytes is "
        "not installed",
        "lift_share, lift_share_low: perfect texts would not raise the click-through rate",
        "claim_precision_change: too few texts name a title or a category to judge their claims",
        f"{', '.join(REFERENCED)}: too few texts are about an item that somebody reviewed",
        "group_gap, group_gap_low, group_gap_high: no grouping of users is evaluable",
    ]


def test_nan_is_as_empty_as_null(study):
    path = study.runs[0] / "evaluation.json"
    tau = str(read_json(path)["drift"]["protected"]["kendall_tau"])
    path.write_text(path.read_text().replace(tau, "NaN"))
    values = first_row(study)
    assert values["drift_protected_kendall_tau"] is None
    assert values["notes"].startswith("drift_protected_kendall_tau: ")


@pytest.mark.parametrize("value", [None, "0.3", True, [1.0], {"mean": 1}])
def test_a_value_that_is_no_number_is_refused(study, value):
    change(study, ["kl"], value)
    with pytest.raises(UserError, match=r"evaluation.json: 'kl' is .*, not a finite number") as e:
        first_row(study)
    assert "\n" not in str(e.value)


def test_provenance_follows_contents_and_not_timings(study):
    before = first_row(study)["provenance"]
    assert len(before) == 16
    change(study, ["seconds"], 99.0, "summary.json")
    assert first_row(study)["provenance"] == before
    change(study, ["kl"], 0.123)
    after = first_row(study)["provenance"]
    assert after != before
    change(study, ["adapter_sha256"], "0" * 64, "summary.json")
    trained = first_row(study)["provenance"]
    change(study, ["precision"], "nf4", "certificate.json")
    assert len({before, after, trained, first_row(study)["provenance"]}) == 4


def test_no_user_with_an_item_to_find(study):
    change(study, ["drift", "heldout", "ndcg_change"], None)
    values = first_row(study)
    assert values["drift_heldout_ndcg_change"] is None
    assert "drift_heldout_ndcg_change: no user has an unseen item to find" in values["notes"]


@pytest.mark.parametrize(
    ("keys", "file", "message"),
    [
        (["reward"], "evaluation.json", r"evaluation.json lacks 'reward.before'"),
        (["verdict"], "certificate.json", r"certificate.json lacks 'verdict.protected'"),
        (["merges", "bf16", "heldout"], "certificate.json", r"certificate.json lacks 'merges.bf16"),
        (["merges", "bf16"], "certificate.json", r"certificate.json: 'merges.bf16' has neither"),
    ],
)
def test_a_missing_certificate_or_reward_is_named(study, keys, file, message):
    change(study, keys, {}, file)
    with pytest.raises(UserError, match=message):
        first_row(study)


def test_every_column_reaches_the_csv(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    lines = list(csv.DictReader(to_csv([row(run, SETTINGS) for run in runs]).splitlines()))
    assert len(lines) == len(study.runs)
    assert list(lines[0]) == [column.name for column in ALL_COLUMNS]
    filled = [c.name for c in ALL_COLUMNS if c.name != "notes" and "_nf4_" not in c.name]
    books = [line for line in lines if line["dataset"] == "books"]
    assert all(line[name] != "" for line in books for name in filled)
    # Without reviews there are no references, and without groups no gap.
    unknown = {*REFERENCED, "group_gap", "group_gap_low", "group_gap_high"}
    for line in (line for line in lines if line["dataset"] != "books"):
        assert {name for name in filled if line[name] == ""} == unknown


def place(study, dataset):
    """Number of a dataset's first run."""
    return next(i for i, run in enumerate(study.runs) if run.parts[-3] == dataset)


def test_the_second_simulator_texts_and_audits_reach_the_row(study):
    number = place(study, "books")
    (run,) = load_runs(study.runs[number : number + 1], study.audits, study.stats)
    values = row(run, SETTINGS)
    clicks = run.evaluation["simulators"]["examination"]
    assert values["examination_relative_low"] == clicks["relative_low"]
    assert values["examination_lift_share"] == clicks["lift_share"]
    texts = run.evaluation["texts"]
    assert values["rouge_l_before"] == texts["before"]["rouge_l"]
    assert values["rouge_l_after"] == texts["after"]["rouge_l"]
    assert values["rouge_l_shuffled"] == texts["after"]["shuffled"]["rouge_l"]
    assert values["bleu_4_constant"] == texts["after"]["constant"]["bleu_4"]
    assert values["distinct_2_after"] == texts["after"]["distinct_2"]
    audit = run.audit
    assert values["toxicity_p95_after"] == audit["toxicity"]["after"]["p95"]["mean"]
    assert values["gini_change_high"] == audit["popularity"]["change"]["gini"]["high"]
    assert values["group_gap"] == audit["fairness"]["gap"]["mean"]
    assert values["grounding_low"] == audit["grounding"]["paired_minus_shuffled"]["low"]
    assert values["injection_excess"] == audit["injection"]["excess"]["mean"]
    assert values["leak_rate_upper"] == audit["privacy"]["samples"]["leak_rate_upper"]
    assert values["copied_share"] == audit["privacy"]["after"]["copied_share"]
