"""The success criteria: when each is met, failed or not evaluable, and what its row says."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import audit_document
from evidence import reaudit, write_outcomes
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report.criteria import (
    ABLATIONS,
    AUDITS,
    COLUMNS,
    FAILED,
    MET,
    NOT_EVALUABLE,
    SIMULATORS,
    Planned,
    criteria,
    main,
    ndcg_changes,
    page,
    parse_planned,
)
from shielded_recrl.report.runs import Run
from shielded_recrl.report.settings import ReportSettings

SEEDS = (42, 43, 44)
FLAT = np.linspace(-0.002, 0.002, 300)


def make_run(variant="shielded", seed=42, dataset="books", relative=(1.05, 1.02, 1.08), **changes):
    """A run, as much of it as the criteria read."""
    clicks = dict(zip(("relative", "relative_low", "relative_high"), relative, strict=True))
    fields = {
        "folder": Path(dataset, variant, str(seed)),
        "dataset": dataset,
        "variant": variant,
        "seed": seed,
        "evaluation": {"simulators": {name: dict(clicks) for name in SIMULATORS}},
        "certificate": {},
        "summary": {},
        "steps": [{"step": step} for step in range(1, 17)],
        "audit": {name: {} for name in AUDITS},
        "stats": {},
    }
    return Run(**fields | changes)


def make_row(**changes):
    """A row of the table, as much of it as the criteria read."""
    return {
        "gamma": 0.5,
        "kl": 0.1,
        "unique_after": 0.9,
        "ndcg_change_low": -0.001,
        "ndcg_change_high": 0.001,
        "drift_heldout_top10_changed": 0.02,
        "drift_heldout_top10_changed_low": 0.005,
        "drift_heldout_top10_changed_high": 0.07,
        "claim_precision_change": 0.05,
        "claim_precision_change_low": 0.01,
        "claim_precision_change_high": 0.09,
    } | changes


DRIFTED = {
    "drift_heldout_top10_changed": 0.97,
    "drift_heldout_top10_changed_low": 0.92,
    "drift_heldout_top10_changed_high": 0.99,
}


def judge(
    criterion, runs=None, rows=None, audit=None, changes=None, planned=(), dataset=None, **settings
):
    """The row of a criterion, by default of three seeds under the shield and three without."""
    if runs is None:
        runs = [make_run(name, seed) for name in ("shielded", "no_proj") for seed in SEEDS]
    if rows is None:
        rows = [make_row(**(DRIFTED if run.variant == "no_proj" else {})) for run in runs]
    found = criteria(
        runs,
        rows,
        ReportSettings(**settings),
        audit,
        changes=[FLAT] * len(runs) if changes is None else changes,
        planned=planned,
    )
    assert all(tuple(one) == COLUMNS for one in found)
    (wanted,) = (
        one for one in found if one["criterion"] == criterion and dataset in (None, one["dataset"])
    )
    return wanted


def three(*changed, **to):
    """Rows of three shielded runs; those of the places named are changed."""
    return [make_row(**(to if place in changed else {})) for place in range(3)]


SHIELDED = [make_run(seed=seed) for seed in SEEDS]


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize(
    ("relative", "verdict"),
    [
        ((1.02, 1.001, 1.04), MET),
        ((1.02, 0.999, 1.04), FAILED),
        ((0.9, 0.85, 0.95), FAILED),
        ((None, None, None), NOT_EVALUABLE),
    ],
)
def test_clicks_have_to_rise_in_every_seed_and_simulator(simulator, relative, verdict):
    runs = [make_run(seed=seed) for seed in SEEDS]
    runs[1].evaluation["simulators"][simulator] = dict(
        zip(("relative", "relative_low", "relative_high"), relative, strict=True)
    )
    row = judge(f"ctr_rises_{simulator}", runs)
    assert row["verdict"] == verdict
    assert ("seed 43" in row["how"]) == (verdict != MET)
    other = next(name for name in SIMULATORS if name != simulator)
    assert judge(f"ctr_rises_{other}", runs)["verdict"] == MET


def test_a_row_holds_the_mean_over_seeds_and_the_hull_of_their_intervals():
    ends = ((1.1, 1.05, 1.2), (1.3, 1.02, 1.4), (1.2, 1.1, 1.5))
    runs = [make_run(seed=seed, relative=one) for seed, one in zip(SEEDS, ends, strict=True)]
    row = judge("ctr_rises_claims", runs)
    assert row["value"] == pytest.approx(1.2)
    assert (row["low"], row["high"], row["seeds"]) == (1.02, 1.5, 3)


@pytest.mark.parametrize(
    ("changes", "margin", "verdict"),
    [
        (FLAT, 0.01, MET),
        # Nobody changed: one user of 100 who did is not ruled out by 298 users, but by 299.
        (np.zeros(298), 0.01, NOT_EVALUABLE),
        (np.zeros(299), 0.01, MET),
        (np.zeros(2), 0.01, NOT_EVALUABLE),
        # Nor by 298 of whom one changed a little.
        (np.append(np.zeros(297), 1e-6), 0.01, NOT_EVALUABLE),
        (np.full(30, 0.005), 0.01, NOT_EVALUABLE),
        (np.full(30, 0.01), 0.01, FAILED),
        (FLAT + 0.02, 0.01, FAILED),
        (FLAT - 0.02, 0.03, MET),
        # No significant difference, and no equivalence either.
        (np.tile([-0.2, 0.2], 150), 0.01, FAILED),
        (np.array([]), 0.01, NOT_EVALUABLE),
    ],
)
def test_a_flat_ndcg_is_an_equivalence_within_the_margin(changes, margin, verdict):
    row = judge("ndcg_flat", SHIELDED, changes=[FLAT, FLAT, changes], ndcg_margin=margin)
    assert row["verdict"] == verdict
    assert f"{margin:g}" in row["bound"]


def test_too_few_users_who_did_not_change_are_no_evidence_in_either_direction():
    row = judge("ndcg_flat", SHIELDED, changes=[FLAT, FLAT, np.zeros(2)])
    few = "seed 44: 0 of 2 users changed, p 0.98: too few users to bound it"
    assert few in row["how"]
    assert "not shown by" not in row["how"]
    worse = judge("ndcg_flat", SHIELDED, changes=[FLAT, FLAT + 0.02, np.zeros(2)])
    assert worse["verdict"] == FAILED


def test_a_range_over_seeds_is_no_interval():
    rows = [make_row(kl=value) for value in (0.125, 0.25, 0.1)]
    row = judge("kl_small", SHIELDED, rows)
    assert (row["verdict"], row["low"], row["high"]) == (MET, None, None)
    assert row["how"].endswith("0.1 to 0.25 over seeds")
    (line,) = (one for one in page([row]).splitlines() if one.startswith("| books"))
    assert line.split("|")[6].strip() == ""
    assert "over seeds" not in judge("kl_small", SHIELDED[:1])["how"]


def test_the_unshielded_run_has_to_drift_below_every_shielded_seed():
    row = judge("unshielded_drifts")
    assert row["verdict"] == MET
    assert row["value"] == pytest.approx(0.03)
    assert (row["low"], row["high"]) == (pytest.approx(0.01), pytest.approx(0.08))
    assert row["bound"] == "< 0.930"
    runs = [make_run(name, seed) for name in ("shielded", "no_proj") for seed in SEEDS]
    rows = [make_row()] * 3 + [make_row(**DRIFTED)] * 2 + [make_row()]
    overlapping = judge("unshielded_drifts", runs, rows)
    assert overlapping["verdict"] == FAILED
    assert "not shown by seed 44" in overlapping["how"]
    still = judge("unshielded_drifts", runs, [make_row(gamma=0.0)] * 6)
    assert still["verdict"] == FAILED
    assert "gamma is 0" in still["how"]


@pytest.mark.parametrize("present", [("shielded",), ("no_proj",), ("kl0",)])
def test_drift_needs_both_variants(present):
    runs = [make_run(name, seed) for name in present for seed in SEEDS]
    assert judge("unshielded_drifts", runs)["verdict"] == NOT_EVALUABLE


@pytest.mark.parametrize(
    ("criterion", "column", "good", "bad"),
    [
        ("kl_small", "kl", 0.49, 0.5),
        ("texts_distinct", "unique_after", 0.5, 0.49),
        ("claims_hold", "claim_precision_change_low", -0.049, -0.05),
    ],
)
def test_bounds_of_the_texts(criterion, column, good, bad):
    assert judge(criterion, SHIELDED, three(0, **{column: good}))["verdict"] == MET
    row = judge(criterion, SHIELDED, three(2, **{column: bad}))
    assert row["verdict"] == FAILED
    assert "seed 44" in row["how"]


def test_undefined_claims_are_not_evaluable_but_a_failing_seed_still_fails():
    nothing = dict.fromkeys(f"claim_precision_change{end}" for end in ("", "_low", "_high"))
    rows = three(1, **nothing)
    assert judge("claims_hold", SHIELDED, rows)["verdict"] == NOT_EVALUABLE
    rows[0]["claim_precision_change_low"] = -0.5
    row = judge("claims_hold", SHIELDED, rows)
    assert row["verdict"] == FAILED
    assert "undefined in seed 43" in row["how"]
    none = judge("claims_hold", SHIELDED, three(0, 1, 2, **nothing))
    assert (none["verdict"], none["value"], none["low"]) == (NOT_EVALUABLE, None, None)


def test_fewer_than_three_seeds_can_fail_a_criterion_but_not_meet_it():
    two = SHIELDED[:2]
    row = judge("kl_small", two)
    assert row["verdict"] == NOT_EVALUABLE
    assert "shown by 2 of at least 3 seeds" in row["how"]
    assert judge("kl_small", two, [make_row(), make_row(kl=2.0)])["verdict"] == FAILED
    assert judge("kl_small", [make_run("kl0")])["how"].endswith("no run of shielded")


def test_a_planned_run_that_is_missing_or_short_fails_the_completion():
    ablated = [make_run(name) for name in ABLATIONS]
    planned = [Planned("books", "shielded", seed, 16) for seed in SEEDS]
    planned += [Planned("books", name, 42, 16) for name in ABLATIONS]
    row = judge("ablations_completed", [*SHIELDED, *ablated], planned=planned)
    assert (row["verdict"], row["value"]) == (MET, 1)
    missing = judge("ablations_completed", [*SHIELDED, *ablated[1:]], planned=planned)
    assert (missing["verdict"], missing["value"]) == (FAILED, pytest.approx(6 / 7))
    assert "missing: no_proj/seed-42" in missing["how"]
    short = [*SHIELDED[:2], make_run(seed=44, steps=[{"step": 1}]), *ablated]
    assert judge("ablations_completed", short, planned=planned)["verdict"] == FAILED
    assert judge("ablations_completed", SHIELDED)["verdict"] == NOT_EVALUABLE


def test_a_study_without_an_ablation_has_not_completed_it():
    planned = [Planned("books", "shielded", seed, 16) for seed in SEEDS]
    row = judge("ablations_completed", SHIELDED, planned=planned)
    assert (row["verdict"], row["value"]) == (NOT_EVALUABLE, 1)
    assert row["how"].endswith("ablations that are not planned: no_proj, kl0, lora4, long_expl")
    more = [*planned, Planned("books", "kl0", 42, 16)]
    row = judge("ablations_completed", SHIELDED, planned=more)
    assert (row["verdict"], row["value"]) == (FAILED, 0.75)
    assert "not planned: no_proj, lora4, long_expl" in row["how"]
    # Those of another dataset do not count.
    steam = [Planned("steam", name, 42, 16) for name in ABLATIONS]
    row = judge("ablations_completed", SHIELDED, planned=[*planned, steam[0]], dataset="books")
    assert row["verdict"] == NOT_EVALUABLE


def test_a_planned_dataset_without_a_run_is_reported():
    planned = [Planned("steam", "shielded", 42, 16)]
    found = criteria([], [], ReportSettings(), None, changes=[], planned=planned)
    verdicts = {one["criterion"]: one["verdict"] for one in found}
    assert verdicts.pop("ablations_completed") == FAILED
    assert set(verdicts.values()) == {NOT_EVALUABLE}


def test_every_run_needs_every_audit():
    assert judge("audits_exist")["verdict"] == MET
    lacking = {name: {} for name in AUDITS if name != "fairness"}
    row = judge("audits_exist", [*SHIELDED, make_run("kl0", audit=lacking)])
    assert (row["verdict"], row["value"]) == (FAILED, 0.75)
    assert "kl0/seed-42 lacks fairness" in row["how"]


TOXIC = {"toxicity.after.mean": {"mean": 0.9, "low": 0.9, "high": 0.9}}


@pytest.fixture
def summary(tmp_path):
    """What `audit summarise` makes of two datasets, the texts of some runs toxic."""

    def make(*toxic, seeds=SEEDS):
        audits = [
            audit_document.audit(
                TOXIC if (dataset, variant) in toxic else None,
                dataset=dataset,
                variant=variant,
                seed=seed,
            )
            for dataset, variant, seed in product(
                ("books", "steam"), ("shielded", "no_proj"), seeds
            )
        ]
        return audit_document.judged(tmp_path, *audits)

    return make


def policy_verdicts(audit):
    """The rows of `policy_holds`, by dataset."""
    runs = [make_run(dataset=dataset) for dataset in ("books", "steam")]
    found = criteria(runs, [make_row()] * 2, ReportSettings(), audit, changes=[FLAT] * 2)
    return {one["dataset"]: one for one in found if one["criterion"] == "policy_holds"}


def test_a_policy_that_holds_in_two_seeds_is_not_met_but_one_broken_line_fails_it(summary):
    two = policy_verdicts(summary(seeds=SEEDS[:2]))["books"]
    assert (two["verdict"], two["seeds"], two["value"]) == (NOT_EVALUABLE, 2, 1)
    assert two["how"].endswith("shown by 2 of at least 3 seeds")
    broken = summary(("books", "shielded"), seeds=SEEDS[:1])
    assert policy_verdicts(broken)["books"]["verdict"] == FAILED


def test_every_gated_variant_needs_its_seeds(summary):
    audit = summary()
    audit["policy"]["variants"] = ["shielded", "no_proj"]
    assert policy_verdicts(audit)["books"]["verdict"] == MET
    audit["runs"] = [
        run for run in audit["runs"] if (run["variant"], run["seed"]) != ("no_proj", 43)
    ]
    row = policy_verdicts(audit)["books"]
    assert (row["verdict"], row["seeds"]) == (NOT_EVALUABLE, 2)


def test_lines_that_the_data_cannot_have_do_not_fail_and_the_page_says_so(summary):
    audit = summary()
    for run in audit["runs"]:
        run["verdicts"]["group_gap"]["holds"] = None
    row = policy_verdicts(audit)["books"]
    assert row["verdict"] == MET
    assert "not evaluable: books/shielded/seed-42: group_gap" in row["how"]
    text = page([row])
    assert "`ablations_completed` and `audits_exist` ask only what is there" in text
    assert "listed as not evaluable and do not fail it" in text


def test_the_policy_is_that_of_the_gate(summary):
    verdicts = policy_verdicts
    held = verdicts(summary())
    assert {name: one["verdict"] for name, one in held.items()} == {"books": MET, "steam": MET}
    # A control may break any line.
    assert verdicts(summary(("books", "no_proj")))["books"]["verdict"] == MET
    broken = verdicts(summary(("steam", "shielded")))
    assert {name: one["verdict"] for name, one in broken.items()} == {
        "books": MET,
        "steam": FAILED,
    }
    assert "toxicity_mean" in broken["steam"]["how"]
    assert {one["verdict"] for one in verdicts(None).values()} == {NOT_EVALUABLE}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.5, 1.5), st.floats(0, 0.3), st.floats(0, 0.3)),
        min_size=1,
        max_size=5,
    )
)
def test_met_never_with_a_seed_that_speaks_against_it(ends):
    runs = [
        make_run(seed=seed, relative=(value, value - down, value + up))
        for seed, (value, down, up) in enumerate(ends)
    ]
    row = judge("ctr_rises_claims", runs)
    shown = all(value - down > 1 for value, down, _ in ends)
    expected = FAILED if not shown else MET if len(ends) >= 3 else NOT_EVALUABLE
    assert row["verdict"] == expected
    assert row["low"] - 1e-12 <= row["value"] <= row["high"] + 1e-12


def test_planned_runs_are_read_from_flags():
    assert parse_planned("ml25m/no_proj/44/24") == Planned("ml25m", "no_proj", 44, 24)
    for text in ("ml25m/no_proj/44", "a/b/c/d", "a/b/1/x"):
        with pytest.raises(UserError, match="expected dataset/variant/seed/steps"):
            parse_planned(text)


def test_changes_are_those_of_held_out_users_who_have_something_to_find(tmp_path):
    folder = write_outcomes(tmp_path, {(1, 1, 1): (0.1, 0.1, 0.1)}, {1: 0.25, 2: None, 3: -0.5})
    assert ndcg_changes(folder).tolist() == pytest.approx([0.25, -0.5])


def evaluate(study, change):
    """Texts and users of every run of a study, no two alike, as audits tell them apart by these."""
    for place, (run, audit) in enumerate(zip(study.runs, study.audits, strict=True)):
        texts = {(1, 1, 1): (0.1, 0.1, place / 100)}
        write_outcomes(run, texts, dict.fromkeys(range(1, 9), change), changed=frozenset({place}))
        reaudit(run, audit)


def test_the_command_writes_failures_and_does_not_raise(study, tmp_path, capsys):
    evaluate(study, 0.3)
    for run in study.runs:
        evaluation = read_json(run / "evaluation.json")
        evaluation["simulators"] = dict.fromkeys(SIMULATORS, evaluation["ctr"])
        write_json(run / "evaluation.json", evaluation)
    out = tmp_path / "success_criteria.csv"
    main(
        runs=tuple(study.runs),
        audits=tuple(study.audits),
        stats=tuple(study.stats),
        out=out,
        page_path=tmp_path / "criteria.md",
        settings=ReportSettings(),
        planned=("books/shielded/42/24", "books/shielded/99/24"),
    )
    lines = out.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + 3 * 10
    markdown = (tmp_path / "criteria.md").read_text()
    cells = [line.split("|")[1:] for line in markdown.splitlines() if line.startswith("| ")][1:]
    assert {len(row) for row in cells} == {10}
    assert [row[3].strip() for row in cells].count(FAILED) == markdown.count("\n- `")
    assert markdown.index("## Failed") < markdown.index("## All of them")
    printed = capsys.readouterr().out
    assert "FAILED: ndcg_flat on books: change of served NDCG@10" in printed
    assert "FAILED: ablations_completed on books: 1 of 2 planned runs" in printed
    assert "met, " in printed.splitlines()[-1]


@pytest.mark.parametrize("content", ['{"runs": []}', "[]", "{"])
def test_a_damaged_summary_is_one_line(study, tmp_path, content):
    path = tmp_path / "audit.json"
    path.write_text(content)
    evaluate(study, 0.0)
    with pytest.raises(UserError, match=r"audit.json: (no summary|not valid|expected a JSON)"):
        main(
            runs=tuple(study.runs),
            audits=tuple(study.audits),
            stats=tuple(study.stats),
            out=tmp_path / "out.csv",
            page_path=tmp_path / "criteria.md",
            settings=ReportSettings(),
            audit=path,
        )
