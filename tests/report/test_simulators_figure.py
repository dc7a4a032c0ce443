"""Lift over the weight of quality, and calibration: which numbers are drawn where."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from figure_checks import check_layout
from shielded_recrl.report.columns import row
from shielded_recrl.report.figures import simulators
from shielded_recrl.report.figures.style import save, styles
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings

FIGURES = [simulators.quality_weight, simulators.calibration]
PANELS = [(s, d) for s in ("claims", "examination") for d in ("books", "ml25m", "steam")]


def load(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    return runs, [row(one, TableSettings()) for one in runs]


def own(runs, dataset, variant):
    return [run for run in runs if (run.dataset, run.variant) == (dataset, variant)]


def sweep(run, simulator, key):
    rows = run.evaluation["quality_weight_sweep"]
    return [one[key] for one in rows if one["simulator"] == simulator]


@pytest.mark.parametrize("figure", FIGURES)
def test_a_column_for_each_dataset_and_a_row_for_each_simulator(study, figure):
    drawn = figure(*load(study))
    assert len(drawn.axes) == len(PANELS)
    assert [axes.get_title().split(",")[0] for axes in drawn.axes] == [
        *("Amazon reviews", "MovieLens", "Steam"),
        *("", "", ""),
    ]
    assert [axes.get_ylabel().split(" ")[-1] for axes in drawn.axes] == [
        *("claims", "", ""),
        *("examination", "", ""),
    ]


def test_lines_are_means_and_whiskers_the_hull_of_the_seeds(study):
    runs, rows = load(study)
    drawn = simulators.quality_weight(runs, rows)
    for axes, (simulator, dataset) in zip(drawn.axes, PANELS, strict=True):
        names = {run.variant for run in runs if run.dataset == dataset}
        assert len(axes.collections) == len(names)
        for variant, (colour, marker) in styles(sorted(names)).items():
            seeds = own(runs, dataset, variant)
            (line,) = [one for one in axes.lines if to_hex(one.get_color()) == colour.lower()]
            assert line.get_marker() == marker
            places = line.get_xdata()
            # Beside their weights, nearer to them than to any other.
            np.testing.assert_allclose(np.ptp(places - [0.0, 0.25, 0.5, 1.0, 2.0]), 0, atol=1e-12)
            assert abs(places[0]) < 0.125
            means = np.mean([sweep(run, simulator, "relative") for run in seeds], axis=0)
            np.testing.assert_allclose(line.get_ydata(), means)
            (whiskers,) = [
                one for one in axes.collections if to_hex(one.get_color()[0]) == colour.lower()
            ]
            low = np.min([sweep(run, simulator, "relative_low") for run in seeds], axis=0)
            high = np.max([sweep(run, simulator, "relative_high") for run in seeds], axis=0)
            expected = np.stack([np.stack([places, end], axis=1) for end in (low, high)], axis=1)
            np.testing.assert_allclose(whiskers.get_segments(), expected)


def test_variants_stand_side_by_side_at_a_weight(study):
    runs, rows = load(study)
    axes = simulators.quality_weight(runs, rows).axes[0]
    first = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 5)
    assert len(first) == len({run.variant for run in runs if run.dataset == "books"}) > 2
    assert sum(first) == pytest.approx(0)
    np.testing.assert_allclose(np.diff(first), 0.6 * 0.25 / len(first))


def test_where_nobody_reads_nothing_changes(study):
    for axes in simulators.quality_weight(*load(study)).axes:
        for line in axes.lines:
            if len(line.get_xdata()) == 5:
                assert line.get_ydata()[0] == 1.0


def test_an_undefined_ratio_leaves_a_gap(study):
    runs, rows = load(study)
    for one in runs[0].evaluation["quality_weight_sweep"]:
        if one["weight"] == 0:
            one.update(relative=None, relative_low=None, relative_high=None)
    axes = simulators.quality_weight(runs[:1], rows[:1]).axes[0]
    (line,) = [one for one in axes.lines if len(one.get_xdata()) == 5]
    assert np.isnan(line.get_ydata()[0])
    assert np.isfinite(line.get_ydata()[1:]).all()


def test_dots_are_bins_by_the_colour_of_what_foretold_them(study):
    runs, rows = load(study)
    drawn = simulators.calibration(runs, rows)
    for axes, (simulator, dataset) in zip(drawn.axes, PANELS, strict=True):
        here = [run for run in runs if run.dataset == dataset]
        assert len(axes.collections) == 2 * len(here)
        for source in ("own", "reward"):
            for run in here:
                colour = styles([run.variant])[run.variant][0]
                colour = simulators.GREY if source == "own" else colour
                bins = run.evaluation["calibration"][simulator][source]["after"]["bins"]
                places = [(one["predicted"], one["observed"]) for one in bins]
                assert any(
                    np.array_equal(dots.get_offsets(), places)
                    for dots in axes.collections
                    if to_hex(dots.get_facecolor()[0]) == colour.lower()
                )


def test_areas_are_shares_of_sessions(study):
    runs, rows = load(study)
    axes = simulators.calibration(runs[:1], rows[:1]).axes[0]
    bins = runs[0].evaluation["calibration"]["claims"]["own"]["after"]["bins"]
    counts = np.array([one["count"] for one in bins])
    for dots in axes.collections:
        np.testing.assert_allclose(dots.get_sizes() - 4, 60 * counts / counts.sum())


def test_errors_are_the_ends_over_all_runs(study):
    runs, rows = load(study)
    for run, error in zip(runs, np.linspace(0.01, 0.08, len(runs)), strict=True):
        run.evaluation["calibration"]["claims"]["reward"]["after"]["ece"] = float(error)
        run.evaluation["calibration"]["claims"]["own"]["after"]["ece"] = 0.0031
    (text,) = simulators.calibration(runs, rows).axes[0].texts
    # Nine of the fifteen runs are on Books: 0.01 and 0.005 for each further one.
    assert text.get_text() == "ECE, reward 0.010 to 0.050\nECE, own 0.003"


@pytest.mark.parametrize("figure", FIGURES)
def test_every_variant_is_in_the_legend_in_its_style(study, figure):
    runs, rows = load(study)
    handles = figure(runs, rows).legends[0].legend_handles
    expected = styles([run.variant for run in runs])
    found = {one.get_label(): (one.get_color(), one.get_marker()) for one in handles}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("figure", FIGURES)
def test_nothing_is_cut_off_with_many_variants_or_one(extended, figure):
    study = extended(*(("books", f"variant_{number}", 42) for number in range(14)))
    runs, rows = load(study)
    check_layout(figure(runs, rows))
    check_layout(figure(runs[-1:], rows[-1:]))


@pytest.mark.parametrize("figure", FIGURES)
def test_drawing_is_deterministic_and_leaves_the_defaults_alone(study, tmp_path, figure):
    before = dict(mpl.rcParams)
    for name in ("one", "two"):
        save(figure(*load(study)), tmp_path / name, ("png",))
    assert dict(mpl.rcParams) == before
    one, two = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two
