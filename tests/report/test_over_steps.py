"""Learning curves: what the legend explains, and that nothing is cut off."""

import pytest

from figure_checks import check_layout
from shielded_recrl.report.columns import row
from shielded_recrl.report.figures import over_steps
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings


def load(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    return runs, [row(one, TableSettings()) for one in runs]


@pytest.mark.parametrize(("key", "last"), [("ctr", []), ("ndcg@10", ["SASRec alone"])])
def test_the_legend_tells_variants_seeds_and_bands(study, key, last):
    runs, rows = load(study)
    drawn = over_steps.figure(runs, rows, key, "y")
    entries = [text.get_text() for text in drawn.legends[0].get_texts()]
    variants = list(dict.fromkeys(run.variant for run in runs))
    assert entries == [*variants, "one seed", "mean ± standard error", *last]


@pytest.mark.parametrize("key", ["ctr", "ndcg@10"])
def test_nothing_is_cut_off_with_many_variants_or_one(extended, key):
    study = extended(*(("books", f"variant_{number}", 42) for number in range(14)))
    runs, rows = load(study)
    check_layout(over_steps.figure(runs, rows, key, "y", least_span=0.04))
    for place in (0, -1):
        check_layout(over_steps.figure([runs[place]], [rows[place]], key, "y"))
