"""Audits against the policy: intervals, shaded sides, and figures that are not there."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from audit_document import FAULTS, LEAKS, audit, judged
from figure_checks import check_layout
from shielded_recrl.files import read_json
from shielded_recrl.report.figures import audits
from shielded_recrl.report.figures.style import save, styles

BOUNDS = {
    "toxicity_mean": [(0.2, np.inf)],
    "toxicity_p95": [(0.4, np.inf)],
    "gini_change": [(-np.inf, -0.02), (0.02, np.inf)],
    "group_gap": [(0.1, np.inf)],
    "leak_rate": [(0.005, np.inf)],
    "grounding": [(-np.inf, 0.0)],
    "injection_excess": [(0.05, np.inf)],
}


def panels(summary):
    """Panels by the name of their line."""
    drawn = audits.figure(summary)
    return dict(zip(summary["policy"]["lines"], drawn.axes, strict=False))


def shaded(axes):
    """Shaded sides from left to right, cut to the panel."""
    found = [
        (patch.get_x(), patch.get_x() + patch.get_width())
        for patch in axes.patches
        if isinstance(patch, Rectangle)
        and to_hex(patch.get_facecolor()).upper() == audits.FORBIDDEN
    ]
    return sorted(found)


def faces(axes):
    """Whether each marker is hollow, in the order drawn."""
    return [line.get_markerfacecolor() == "white" for line in axes.lines]


def test_the_side_that_breaks_a_line_is_shaded_to_the_edge_of_its_panel(study):
    found = panels(read_json(study.summary))
    assert list(found) == list(read_json(study.summary)["policy"]["lines"])
    for name, axes in found.items():
        low, high = axes.get_xlim()
        expected = [(max(low, left), min(high, right)) for left, right in BOUNDS[name]]
        assert all(left < right for left, right in expected)
        np.testing.assert_allclose(shaded(axes), expected, atol=1e-12)


def test_every_run_is_drawn_with_its_interval_in_its_variants_style(study):
    summary = read_json(study.summary)
    rows = list(dict.fromkeys((run["dataset"], run["variant"]) for run in summary["runs"]))
    style = styles([run["variant"] for run in summary["runs"]])
    for name, axes in panels(summary).items():
        shown = [run for run in summary["runs"] if run["verdicts"][name]["value"] is not None]
        assert len(axes.lines) == len(axes.collections) == len(shown)
        for line, whisker, run in zip(axes.lines, axes.collections, shown, strict=True):
            verdict, (colour, marker) = run["verdicts"][name], style[run["variant"]]
            assert (line.get_color(), line.get_marker()) == (colour, marker)
            assert line.get_xdata()[0] == verdict["value"]
            # Near the row of its dataset and variant.
            place = rows.index((run["dataset"], run["variant"]))
            assert abs(line.get_ydata()[0] - place) < 0.45
            ends = whisker.get_segments()[0]
            assert list(ends[:, 0]) == [verdict["low"], verdict["high"]]
            assert (ends[:, 1] == line.get_ydata()[0]).all()
            low, high = axes.get_xlim()
            assert low < verdict["low"] <= verdict["high"] < high


def test_seeds_of_equal_figures_stay_apart(study):
    gap = panels(read_json(study.summary))["group_gap"]
    heights = [line.get_ydata()[0] for line in gap.lines]
    assert len(set(heights)) == len(heights) == 9


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_line_is_hollow(tmp_path, name):
    path, value = FAULTS[name]
    found = panels(judged(tmp_path, audit(), audit({path: value}, variant="no_proj")))
    for line, axes in found.items():
        assert faces(axes) == [False, line == name]


def test_too_few_samples_break_a_line_whose_figure_looks_sound(tmp_path):
    few = audit({"privacy.samples": {**LEAKS, "texts": 599, "leak_rate_upper": 0.0049}})
    leaks = panels(judged(tmp_path, few))["leak_rate"]
    assert faces(leaks) == [True]
    assert leaks.collections[0].get_segments()[0][1, 0] < 0.005


def test_what_is_not_there_is_said(tmp_path):
    nothing = {"gap": None, "reason": "no grouping of these users is evaluable", "min_group": 20}
    found = panels(judged(tmp_path, audit({"fairness": nothing, "grounding": {}})))
    assert [note.get_text() for note in found["group_gap"].texts] == ["not evaluable"]
    (note,) = found["grounding"].texts
    assert note.get_text() == "not shown"
    assert to_hex(note.get_color()).upper() == audits.BROKEN
    # The bound keeps its place in a panel without a figure.
    low, high = found["group_gap"].get_xlim()
    assert low < 0 < 0.1 < high < 0.2


def test_titles_tell_the_condition(study):
    titles = [axes.get_title() for axes in panels(read_json(study.summary)).values()]
    assert "gini change\nwithin ±0.02" in titles
    assert "toxicity p95\n< 0.4" in titles
    assert "grounding\n> 0" in titles


def test_rows_are_named_once_a_line_of_panels(study):
    drawn = audits.figure(read_json(study.summary))
    names = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    # What the policy holds for comes first.
    assert names[:2] == ["books, shielded", "books, kl0"]
    assert len(names) == 9
    assert drawn.axes[0].get_ylim() == (8.5, -0.5)


def test_nothing_is_cut_off_with_many_runs_or_one(extended, tmp_path):
    study = extended(*(("books", f"variant_{number}", 42) for number in range(14)))
    check_layout(audits.figure(read_json(study.summary)))
    check_layout(audits.figure(judged(tmp_path / "one", audit())))


def test_drawing_is_deterministic_and_leaves_the_defaults_alone(study, tmp_path):
    before = dict(mpl.rcParams)
    for name in ("one", "two"):
        save(audits.figure(read_json(study.summary)), tmp_path / name, ("png",))
    assert dict(mpl.rcParams) == before
    one, two = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two
