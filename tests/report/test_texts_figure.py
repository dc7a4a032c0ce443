"""ROUGE-L beside its controls: which scores are drawn where, and panels that have none."""

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex

from figure_checks import check_layout
from shielded_recrl.report.columns import row
from shielded_recrl.report.figures import texts
from shielded_recrl.report.figures.style import save, styles
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings


def load(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    return runs, [row(one, TableSettings()) for one in runs]


def marks(axes, place):
    """Marker -> score, of the row at a place."""
    return {
        line.get_marker(): (line.get_xdata()[0], to_hex(line.get_color()).upper())
        for line in axes.lines
        if abs(line.get_ydata()[0] - place) < 0.5
    }


def test_every_run_has_a_row_with_its_scores_and_controls(study):
    runs, rows = load(study)
    books = texts.figure(runs, rows).axes[0]
    here = [run for run in runs if run.dataset == "books"]
    labels = [label.get_text() for label in books.get_yticklabels()]
    assert labels == [f"{run.variant}, {run.seed}" for run in here]
    for place, run in enumerate(here):
        colour, marker = styles([run.variant])[run.variant]
        before, after = (run.evaluation["texts"][when] for when in ("before", "after"))
        found = marks(books, place)
        assert {score[1] for score in found.values()} == {colour}
        assert found["|"][0] == before["rouge_l"]
        assert found["x"][0] == after["constant"]["rouge_l"]
        # The circle is shielded's own marker, and that of the control.
        scores = {
            (line.get_marker(), line.get_markerfacecolor() == "none"): line.get_xdata()[0]
            for line in books.lines
            if abs(line.get_ydata()[0] - place) < 0.5
        }
        assert scores[marker, False] == after["rouge_l"]
        assert scores["o", True] == after["shuffled"]["rouge_l"]
        (segment,) = books.collections[place].get_segments()
        above = after["rouge_l_minus_shuffled"]
        assert [end - after["shuffled"]["rouge_l"] for end in segment[:, 0]] == pytest.approx(
            [above["low"], above["high"]]
        )
        assert abs(segment[0, 1] - place) < 0.5


def test_arrows_lead_from_before_to_after_and_lie_in_the_panel(study):
    runs, rows = load(study)
    for run in runs:
        # Training lost, and before lies beyond all that else is drawn.
        if run.evaluation["texts"]["before"]["rouge_l"] is not None:
            run.evaluation["texts"]["before"]["rouge_l"] = 60.0
    axes = texts.figure(runs, rows).axes[0]
    arrows = [note for note in axes.texts if note.get_text() == ""]
    here = [run for run in runs if run.dataset == "books"]
    assert [(note.xyann, note.xy) for note in arrows] == [
        ((60.0, place), (run.evaluation["texts"]["after"]["rouge_l"], place))
        for place, run in enumerate(here)
    ]
    low, high = axes.get_xlim()
    assert low < min(note.xy[0] for note in arrows) < 60.0 < high


@pytest.mark.parametrize("reason", ["the source has no reviews", "fewer than two texts"])
def test_an_empty_panel_says_why(study, reason):
    runs, rows = load(study)
    for run in runs:
        if run.dataset == "steam":
            run.evaluation["texts"]["reason"] = reason
    drawn = texts.figure(runs, rows)
    _, _, steam = drawn.axes
    assert [note.get_text() for note in steam.texts] == [reason]
    assert steam.get_title().startswith("Steam")
    assert not steam.lines


def test_nothing_is_explained_where_nothing_is_drawn(study):
    runs, rows = load(study)
    assert texts.figure(runs, rows).legends
    places = [place for place, run in enumerate(runs) if run.dataset == "steam"]
    assert not texts.figure([runs[p] for p in places], [rows[p] for p in places]).legends


def test_nothing_is_cut_off_with_many_runs_or_one(extended):
    study = extended(*(("books", f"variant_{number}", 42) for number in range(14)))
    runs, rows = load(study)
    check_layout(texts.figure(runs, rows))
    for place in (0, -1):
        check_layout(texts.figure([runs[place]], [rows[place]]))


def test_drawing_is_deterministic_and_leaves_the_defaults_alone(study, tmp_path):
    before = dict(mpl.rcParams)
    for name in ("one", "two"):
        save(texts.figure(*load(study)), tmp_path / name, ("png",))
    assert dict(mpl.rcParams) == before
    one, two = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two
