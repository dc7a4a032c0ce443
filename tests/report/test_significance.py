"""The ablation table: pairs, intervals, tests, and what may be claimed."""

import csv
import io
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from evidence import reaudit, write_outcomes
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_jsonl, write_jsonl
from shielded_recrl.report.criteria import SIMULATORS
from shielded_recrl.report.csv_table import to_csv
from shielded_recrl.report.significance import (
    ALL_SEEDS,
    COLUMNS,
    OUTCOMES,
    Outcomes,
    compare,
    heldout_users,
    latex,
    load_outcomes,
    main,
    measured,
    page,
    significance,
)

TEXT_OUTCOMES = [name for name, (part, _) in OUTCOMES.items() if part == "texts"]


def outcomes(shift, users=10, items=(1, 2), noise=0.0, seed=0, same=1.0) -> Outcomes:
    """Texts and users whose figures are the user's own plus `shift`."""
    rng = np.random.default_rng(seed)
    pairs = [(user, item, place) for user in range(users) for place, item in enumerate(items, 1)]
    figures = [0.4 + 0.01 * user + shift + noise * rng.normal() for user, _, _ in pairs]
    texts = {
        name: [pair[i] for pair in pairs] for i, name in enumerate(("user", "item", "position"))
    }
    people = {"user": list(range(users)), "ndcg_change": [shift] * users}
    return Outcomes(
        pl.DataFrame(texts | dict.fromkeys(TEXT_OUTCOMES, figures)),
        pl.DataFrame(people | {"top10_identical": [same] * users}),
    )


def pooled(rows, outcome, variant=None):
    (found,) = (
        row
        for row in rows
        if row["seed"] == ALL_SEEDS
        and row["outcome"] == outcome
        and variant in (None, row.get("variant"))
    )
    return found


def test_texts_are_paired_by_user_item_and_position(tmp_path):
    reference = write_outcomes(
        tmp_path / "a",
        {(1, 10, 1): (0.2, 0.1, 0.5), (1, 11, 2): (0.4, 0.1, 0.5), (2, 12, 1): (0.6, 0.1, 0.5)},
        {1: 0.0, 2: 0.1},
    )
    variant = write_outcomes(
        tmp_path / "b",
        {(1, 10, 1): (0.3, 0.1, 0.5), (1, 99, 2): (0.9, 0.1, 0.5), (2, 12, 1): (0.9, 0.1, 0.5)},
        {1: 0.3, 2: 0.2},
    )
    rows = compare({7: load_outcomes(reference)}, {7: load_outcomes(variant)}, 100, 0)
    clicks = pooled(rows, "clicks")
    # Item 11 of one and item 99 of the other have no partner: (0.1 + 0.3) / 2 is left.
    assert (clicks["pairs"], clicks["unpaired"], clicks["users"]) == (2, 2, 2)
    assert clicks["difference"] == pytest.approx(0.2)
    assert (clicks["reference"], clicks["value"]) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (clicks["low"], clicks["high"]) == (pytest.approx(0.1), pytest.approx(0.3))
    # Both users rise: of four assignments of signs two are as extreme.
    assert clicks["p"] == pytest.approx(0.5)
    ndcg = pooled(rows, "ndcg_change")
    assert (ndcg["pairs"], ndcg["difference"]) == (2, pytest.approx((0.3 + 0.1) / 2))


def test_a_list_is_identical_only_in_its_order_and_protected_users_do_not_count(tmp_path):
    folder = write_outcomes(
        tmp_path, {(1, 10, 1): (0.2, 0.1, 0.5)}, {1: 0.0, 2: None, 3: 0.1}, changed=frozenset({3})
    )
    users = load_outcomes(folder).users
    assert users["user"].to_list() == [1, 2, 3]
    assert users["top10_identical"].to_list() == [1.0, 1.0, 0.0]
    assert users["ndcg_change"].to_list() == pytest.approx([0.0, None, 0.1])


def test_users_without_anything_to_find_are_left_out_of_both(tmp_path):
    one, other = (
        load_outcomes(write_outcomes(tmp_path / name, {(1, 1, 1): (0.1, 0.1, 0.1)}, changes))
        for name, changes in (("a", {1: 0.0, 2: None}), ("b", {1: 0.2, 2: 0.5}))
    )
    ndcg = pooled(compare({1: one}, {1: other}, 50, 0), "ndcg_change")
    assert (ndcg["pairs"], ndcg["unpaired"], ndcg["difference"]) == (1, 1, pytest.approx(0.2))


def test_p_values_are_those_of_scipy_and_whole_users_are_flipped():
    reference = {seed: outcomes(0.0) for seed in (1, 2, 3)}
    variant = {seed: outcomes(0.01, noise=0.02, seed=seed) for seed in (1, 2, 3)}
    row = pooled(compare(reference, variant, 5000, 0), "quality")
    sums = np.zeros(10)
    for seed in (1, 2, 3):
        both = variant[seed].texts["quality"] - reference[seed].texts["quality"]
        np.add.at(sums, variant[seed].texts["user"].to_numpy(), both.to_numpy())
    expected = permutation_test(
        (sums,), lambda x, axis: x.sum(axis), permutation_type="samples", vectorized=True
    ).pvalue
    assert row["p"] == pytest.approx(expected, abs=0.01)
    assert row["pairs"] == 60
    assert row["users"] == 10


def test_every_seed_is_shown_and_only_shared_ones_are():
    reference = {seed: outcomes(0.0) for seed in (1, 2, 3)}
    variant = {seed: outcomes(0.1 * seed) for seed in (2, 3, 4)}
    rows = [row for row in compare(reference, variant, 50, 0) if row["outcome"] == "clicks"]
    assert [row["seed"] for row in rows] == [ALL_SEEDS, 2, 3]
    assert [row["seeds"] for row in rows] == [2, 2, 2]
    assert [row["difference"] for row in rows] == pytest.approx([0.25, 0.2, 0.3])


def test_a_seed_without_a_pair_of_the_outcome_is_no_seed_of_it():
    """Two of three shared seeds measured nobody's NDCG: what is left cannot be a claim."""

    def run(shift, measured):
        one = outcomes(shift)
        nobody = pl.lit(None, dtype=pl.Float64)
        return one if measured else one._replace(users=one.users.with_columns(ndcg_change=nobody))

    reference = {seed: run(0.0, True) for seed in (1, 2, 3)}
    variant = {seed: run(0.1, seed == 2) for seed in (1, 2, 3)}
    rows = significance({"books": {"shielded": reference, "b": variant}}, 2000, 0)
    ndcg, clicks = pooled(rows, "ndcg_change"), pooled(rows, "clicks")
    assert (ndcg["seeds"], ndcg["claim"]) == (1, False)
    assert ndcg["p_holm"] < 0.05
    assert (clicks["seeds"], clicks["claim"]) == (3, True)


def test_a_claim_needs_three_seeds_of_one_sign_and_a_small_adjusted_p_value():
    def table(**variants):
        reference = {seed: outcomes(0.0) for seed in (1, 2, 3)}
        return significance({"books": {"shielded": reference, **variants}}, 2000, 0)

    better = {seed: outcomes(0.1) for seed in (1, 2, 3)}
    single = {1: outcomes(0.1)}
    mixed = {seed: outcomes(shift) for seed, shift in ((1, 0.3), (2, 0.3), (3, -0.01))}
    same = {seed: outcomes(0.0) for seed in (1, 2, 3)}
    rows = table(better=better, single=single, mixed=mixed, same=same)
    verdicts = {
        name: pooled(rows, "clicks", name) for name in ("better", "single", "mixed", "same")
    }
    assert {name: row["claim"] for name, row in verdicts.items()} == {
        "better": True,
        "single": False,
        "mixed": False,
        "same": False,
    }
    assert [verdicts[name]["seeds"] for name in ("better", "single")] == [3, 1]
    assert verdicts["single"]["p_holm"] < 0.05
    assert verdicts["same"]["p"] == 1


def test_holm_runs_over_the_whole_table_of_a_dataset_and_over_no_other():
    reference = {seed: outcomes(0.0) for seed in (1, 2, 3)}
    better = {seed: outcomes(0.1) for seed in (1, 2, 3)}
    alone = {"shielded": reference, "b": better}
    crowd = alone | {f"v{i}": {1: outcomes(0.1)} for i in range(3)}
    rows = significance({"books": alone, "steam": crowd}, 2000, 0)
    small, large = (
        [row for row in rows if row["dataset"] == name and row["seed"] == ALL_SEEDS]
        for name in ("books", "steam")
    )
    for part in (small, large):
        values = sorted(row["p"] for row in part)
        assert min(row["p_holm"] for row in part) == pytest.approx(len(part) * values[0])
    assert (len(small), len(large)) == (len(OUTCOMES), 4 * len(OUTCOMES))
    assert all(row["p_holm"] is None for row in rows if row["seed"] != ALL_SEEDS)


def test_a_dataset_without_the_reference_and_a_variant_without_a_shared_seed():
    rows = significance(
        {
            "books": {"no_proj": {1: outcomes(0.0)}},
            "steam": {"shielded": {1: outcomes(0.0)}, "kl0": {2: outcomes(0.1)}},
        },
        50,
        0,
    )
    assert {row["dataset"] for row in rows} == {"steam"}
    assert [row["seeds"] for row in rows] == [0] * len(OUTCOMES)
    assert all(row["difference"] is None and row["p_holm"] is None for row in rows)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.integers(0, 5))
def test_sides_can_be_swapped(shifts, seed):
    reference = {place: outcomes(0.0, users=4) for place, _ in enumerate(shifts)}
    variant = {place: outcomes(shift, users=4) for place, shift in enumerate(shifts)}
    there, back = (
        pooled(compare(*sides, 64, seed), "clicks")
        for sides in ((reference, variant), (variant, reference))
    )
    assert there["difference"] == pytest.approx(-back["difference"], abs=1e-12)
    assert there["low"] == pytest.approx(-back["high"], abs=1e-12)
    assert there["p"] == pytest.approx(back["p"])


@pytest.fixture
def evaluated(study):
    """The study with texts, users and lists as evaluation writes them."""
    rng = np.random.default_rng(5)
    for run, audit in zip(study.runs, study.audits, strict=True):
        moved = run.parent.name == "no_proj"
        texts = {
            (user, 10 * user + place, place): tuple(rng.uniform(0.2, 0.6, 3))
            for user in range(1, 9)
            for place in (1, 2)
        }
        changes = {user: float(rng.normal(-0.05 * moved, 0.01)) for user in range(1, 9)}
        write_outcomes(run, texts, changes, changed=frozenset(range(1, 8) if moved else ()))
        reaudit(run, audit)
    return study


def test_the_command_writes_both_tables(evaluated, tmp_path, capsys):
    def written(name):
        out = tmp_path / name
        main(
            runs=tuple(evaluated.runs),
            audits=tuple(evaluated.audits),
            stats=tuple(evaluated.stats),
            out=out / "significance.csv",
            table_path=out / "significance.tex",
            page_path=out / "significance.md",
            resamples=200,
        )
        return [(out / f"significance.{kind}").read_text() for kind in ("csv", "tex", "md")]

    text, tex, markdown = written("first")
    assert written("second") == [text, tex, markdown]
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    # A row for all seeds and one for each: books 3 and three times 1, ml25m 2, steam 1.
    assert len(rows) == len(OUTCOMES) * (4 + 3 * 2 + 3 + 2)
    same = [row for row in rows if row["outcome"] == "top10_identical" and row["seed"] == ALL_SEEDS]
    moved = {row["dataset"]: row for row in same if row["variant"] == "no_proj"}
    assert {name: row["seeds"] for name, row in moved.items()} == {
        "books": "3",
        "ml25m": "2",
        "steam": "1",
    }
    assert all(float(row["difference"]) == pytest.approx(-7 / 8) for row in moved.values())
    lines = [line for line in tex.splitlines() if line.endswith(r"\\")][1:]
    assert {line.count("&") for line in lines} == {8}
    assert tex.count(r"\midrule") == 3
    cells = [line for line in markdown.splitlines() if line.startswith("| `")]
    assert len(cells) == len(lines) - 1 == 6 * len(OUTCOMES)
    assert {line.count("|") for line in cells} == {12}
    assert markdown.count("\n## ") == 3
    assert "comparisons with shielded" in capsys.readouterr().out


def test_latex_marks_claims(evaluated):
    from shielded_recrl.report.runs import load_runs

    runs = load_runs(evaluated.runs, evaluated.audits, evaluated.stats)
    rows = significance(measured(runs), 200, 0)
    for row in rows:
        row["claim"] = row["seed"] == ALL_SEEDS and row["outcome"] == "quality"
    marked = [line for line in latex(rows, runs).splitlines() if "^{*}" in line]
    assert len(marked) == sum(row["claim"] for row in rows)
    assert all("Quality" in line for line in marked)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "users.parquet").unlink(), r"users.parquet: no readable table of user"),
        (lambda run: (run / "rankings.parquet").write_text("no"), r"rankings.parquet: no readable"),
        (lambda run: (run / "explanations.jsonl").unlink(), r"explanations.jsonl: cannot be read"),
        (
            lambda run: write_jsonl(
                run / "explanations.jsonl",
                [
                    {key: row[key] for key in row if key != "clicks_examination"}
                    for row in read_jsonl(run / "explanations.jsonl")
                ],
            ),
            r"explanations.jsonl, line 1: no number 'clicks_examination'; evaluate the run again",
        ),
    ],
)
def test_a_damaged_run_is_named_on_one_line(tmp_path, break_it, said):
    folder = write_outcomes(tmp_path, {(1, 10, 1): (0.2, 0.1, 0.5)}, {1: 0.0})
    break_it(folder)
    with pytest.raises(UserError, match=said) as caught:
        load_outcomes(folder)
    assert "\n" not in str(caught.value)


def test_a_page_without_a_comparison_says_so():
    assert "No dataset has `shielded` beside another variant" in page([])


def test_what_evaluation_writes_is_what_is_read(tmp_path):
    from shielded_recrl.ranker.metrics import RankingMetrics
    from shielded_recrl.rl.evaluation.ranking import users_table
    from shielded_recrl.rl.evaluation.slate import SIMULATED, column

    serving = SimpleNamespace(roles=SimpleNamespace(protected=np.array([5])))
    metrics = {
        step: RankingMetrics(ndcg=np.array(ndcg), hr=np.ones(3), mrr=np.ones(3))
        for step, ndcg in ((0, [0.5, 0.25, 0.0]), (16, [1.0, 0.5, 0.125]))
    }
    users_table(serving, np.array([5, 7, 3]), metrics).write_parquet(tmp_path / "users.parquet")
    assert heldout_users(tmp_path).to_dict(as_series=False) == {
        "user": [3, 7],
        "ndcg_change": [0.125, 0.25],
    }
    written = {column(name, simulator) for name in SIMULATED for simulator in SIMULATORS}
    assert set(TEXT_OUTCOMES) <= written


def test_csv_has_a_cell_for_every_column():
    rows = significance({"books": {"shielded": {1: outcomes(0)}, "b": {1: outcomes(1)}}}, 50, 0)
    lines = to_csv(rows, COLUMNS).splitlines()
    assert {line.count(",") for line in lines} == {len(COLUMNS) - 1}
