"""The frontier: which numbers are drawn where, what is shaded, and that names can be read."""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from figure_checks import check_layout
from shielded_recrl.report.columns import row
from shielded_recrl.report.figures import frontier
from shielded_recrl.report.figures import style as figures
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings
from shielded_recrl.report.study import Cell

SETTINGS = TableSettings()
VARIANTS = (
    *("separate", "activated", "random", "ranker", "tight", "loose", "weighted"),
    *("no_penalty", "all_blocks"),
)


def rows_of(study):
    return [row(run, SETTINGS) for run in load_runs(study.runs, study.audits, study.stats)]


@pytest.fixture
def rows(extended):
    """Fifteen variants on Books, most with two seeds."""
    study = extended(
        *(("books", v, seed) for v in VARIANTS for seed in (42, 43)), ("books", "mine", 42)
    )
    return [one for one in rows_of(study) if one["dataset"] == "books"]


def of(rows, variant):
    return [one for one in rows if one["variant"] == variant]


def markers(axes, variant, mean):
    """Points drawn in a variant's colour: the mean, or the seeds."""
    colour, _ = figures.styles([variant])[variant]
    (line,) = [
        line
        for line in axes.lines
        if to_hex(line.get_color()).upper() == colour and (line.get_markersize() > 5) == mean
    ]
    return np.stack([line.get_xdata(), line.get_ydata()], axis=1)


def test_points_are_means_and_dots_are_seeds(rows):
    above, _, below = frontier.figure(rows).axes
    own = of(rows, "no_proj")
    gains = [one["heldout_reward_gain"] for one in own]
    changed = [1 - one["drift_heldout_top10_identical"] for one in own]
    moved = [abs(one["ndcg_change"]) for one in own]
    for axes, drifts in ((above, changed), (below, moved)):
        assert np.allclose(markers(axes, "no_proj", mean=False), np.stack([drifts, gains], axis=1))
        assert np.allclose(markers(axes, "no_proj", True), [[np.mean(drifts), np.mean(gains)]])


def test_exact_variants_stand_at_zero_without_an_interval_of_drift(rows):
    above, _, below = frontier.figure(rows).axes
    for variant in ("separate", "activated"):
        for axes in (above, below):
            assert (markers(axes, variant, mean=False)[:, 0] == 0).all()
        colour = to_rgb(figures.styles([variant])[variant][0])
        whiskers = [c for c in above.collections if np.allclose(c.get_color()[0][:3], colour)]
        (ends,) = [whisker.get_segments()[0] for whisker in whiskers]
        assert (ends[:, 0] == 0).all()
        own = of(rows, variant)
        assert ends[0, 1] == min(one["heldout_reward_gain_low"] for one in own)
        assert ends[1, 1] == max(one["heldout_reward_gain_high"] for one in own)


def test_whiskers_of_drift_are_the_hull_of_the_seeds(rows):
    one = frontier.point(
        Cell("books", "no_proj", of(rows, "no_proj")), "drift_heldout_top10_changed"
    )
    own = of(rows, "no_proj")
    assert one.drift_hull == (
        min(r["drift_heldout_top10_changed_low"] for r in own),
        max(r["drift_heldout_top10_changed_high"] for r in own),
    )


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.1, 0.3), (0.1, 0.3)), ((-0.3, -0.1), (0.1, 0.3)), ((-0.1, 0.3), (0.0, 0.3))],
)
def test_intervals_of_an_absolute_value(interval, expected):
    assert frontier.magnitude(*interval) == expected


def shaded(axes):
    colour = to_rgb(frontier.GOAL_COLOUR)
    return [p for p in axes.patches if isinstance(p, Rectangle) and p.get_facecolor()[:3] == colour]


def test_the_goal_is_shaded_and_explained(rows):
    drawn = frontier.figure(rows)
    gain = np.mean([one["heldout_reward_gain"] for one in of(rows, "no_proj")])
    for axes, limit in zip(drawn.axes, (0.05, 0.05, 0.001), strict=True):
        (area,) = shaded(axes)
        assert area.get_x() + area.get_width() == pytest.approx(limit)
        assert area.get_y() == pytest.approx(0.9 * gain)
        assert area.get_x() < axes.get_xlim()[0]
        assert area.get_y() + area.get_height() > axes.get_ylim()[1]
    dashed = [line for line in drawn.axes[2].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [0.001]
    assert "goal: 90% of the reward gain or more of no_proj or no_proj_all" in (
        texts(drawn).replace("\n", " ")
    )


@pytest.mark.parametrize(("last", "every", "larger"), [(0.1, 0.2, 0.2), (0.2, 0.1, 0.2)])
def test_the_goal_is_measured_by_the_better_of_the_unshielded(last, every, larger):
    def cell(variant, gain):
        # Means over seeds, not single seeds, are compared.
        return Cell(
            "books", variant, [{"heldout_reward_gain": g} for g in (gain - 0.09, gain + 0.09)]
        )

    both = [cell("no_proj", last), cell("shielded", 0.5), cell("no_proj_all", every)]
    assert frontier.goal(both) == pytest.approx(0.9 * larger)
    assert frontier.goal(both[1:]) == pytest.approx(0.9 * every)
    assert frontier.goal(both[1:2]) is None


def texts(drawn):
    return " ".join(text.get_text() for text in drawn.legends[0].get_texts())


def test_there_is_no_goal_without_the_unshielded_variant(rows):
    others = [one for one in rows if one["variant"] != "no_proj"]
    lost = [
        {**one, "heldout_reward_gain": -0.1} if one["variant"] == "no_proj" else one for one in rows
    ]
    for some in (others, lost):
        drawn = frontier.figure(some)
        assert not any(shaded(axes) for axes in drawn.axes)
        assert "goal" not in texts(drawn)


def test_every_variant_is_named_inside_its_panel_and_names_keep_apart(rows):
    drawn = frontier.figure(rows)
    names = {one["variant"] for one in rows}
    assert len(names) == 15
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        labels = [text for text in axes.texts if text.get_text() in names]
        assert {text.get_text() for text in labels} == names
        # Of the text alone, without its line.
        boxes = [Text.get_window_extent(text) for text in labels]
        panel = axes.get_window_extent()
        assert all(panel.contains(*box.min) and panel.contains(*box.max) for box in boxes)
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_a_column_of_panels_for_each_dataset(study):
    drawn = frontier.figure(rows_of(study))
    assert [axes.get_title() for axes in drawn.axes[:3]] == [
        "Amazon reviews, 400 users\n(synthetic data)",
        "MovieLens, 601 users\n(synthetic data)",
        "Steam, 3,726 users\n(synthetic data, unordered)",
    ]
    assert len(drawn.axes) == 9
    # Zero has room on the left, and so has everybody on the right.
    for axes in drawn.axes[:6]:
        low, high = axes.get_xlim()
        assert low < 0 < 1 < high


def test_drawing_is_deterministic_and_leaves_the_defaults_alone(rows, tmp_path):
    before = dict(mpl.rcParams)
    for name in ("one", "two"):
        figures.save(frontier.figure(rows), tmp_path / name)
    assert dict(mpl.rcParams) == before
    for kind in ("png", "pdf"):
        one, two = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("one", "two"))
        assert one == two
    # Journals take no bitmap or drawn fonts.
    assert b"/Type3" not in (tmp_path / "one.pdf").read_bytes()


def test_one_run_is_enough(study):
    drawn = frontier.figure(rows_of(study)[:1])
    assert len(drawn.axes) == 3


@pytest.mark.parametrize("widest", [0.0005, 0.002, 0.04, 0.3, 1.0])
def test_no_tick_labels_touch_whatever_the_range(rows, widest):
    some = [one for one in rows if one["variant"] in ("shielded", "no_proj", "kl0")]
    moved = {"ndcg_change": widest, "ndcg_change_low": widest / 2, "ndcg_change_high": widest}
    for one in some:
        one.update(moved if one["variant"] == "no_proj" else dict.fromkeys(moved, 0.0))
    drawn = frontier.figure(some)
    # Also where the defaults are those in force when it is written.
    with mpl.rc_context(figures.STYLE):
        check_layout(drawn)
    check_layout(drawn)
    *_, below = drawn.axes
    ticks = list(below.get_xticks())
    assert len(ticks) >= 2
    assert ticks[0] == 0
    assert set(ticks) <= set(frontier.CHANGES)


def hollow(axes):
    """Places and markers of hollow markers by colour, left to right."""
    found = {}
    for line in axes.lines:
        if line.get_markerfacecolor() == "white":
            mark = (line.get_xdata()[0], line.get_ydata()[0], line.get_marker())
            found.setdefault(to_hex(line.get_color()).upper(), []).append(mark)
    return {colour: sorted(marks, key=lambda mark: mark[:2]) for colour, marks in found.items()}


def test_merges_stand_at_the_reward_of_the_unmerged_adapter(rows):
    for place, one in enumerate(of(rows, "shielded")):
        one["merged_nf4_top10_identical"] = 0.04 + 0.01 * place
    drawn = frontier.figure(rows)
    _, merged, _ = drawn.axes
    found = hollow(merged)
    colours = {variant: figures.styles([variant])[variant] for variant in ("shielded", "random")}
    own = of(rows, "shielded")
    gain = np.mean([one["heldout_reward_gain"] for one in own])
    bf16 = 1 - np.mean([one["merged_bf16_top10_identical"] for one in own])
    colour, marker = colours["shielded"]
    assert [mark[2] for mark in found[colour]] == [marker, "o"]
    assert np.allclose([mark[:2] for mark in found[colour]], [[bf16, gain], [0.95, gain]])
    # In other variants nf4 was not measured; what cannot be merged has no hollow marker.
    assert len(found[colours["random"][0]]) == 1
    for variant in ("separate", "activated"):
        assert figures.styles([variant])[variant][0] not in found
    assert "merged into bf16" in texts(drawn)
    assert "merged into nf4" in texts(drawn)


def test_there_is_no_row_of_merges_where_nothing_was_merged(rows):
    drawn = frontier.figure(of(rows, "separate"))
    assert len(drawn.axes) == 2
    assert "merged" not in texts(drawn)
