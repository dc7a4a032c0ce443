"""Proxy and gold over KL: which numbers are drawn where, and which runs are ringed."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from shielded_recrl.files import read_json, write_json
from shielded_recrl.report.columns import row
from shielded_recrl.report.figures import overoptimisation
from shielded_recrl.report.figures import style as figures
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings


def load(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    return runs, [row(one, TableSettings()) for one in runs]


def edit(folder, **changes):
    path = folder / "evaluation.json"
    write_json(path, {**read_json(path), **changes})


def lines(axes, variant, dashed):
    """Curves of a variant: dashed is the proxy, solid the gold."""
    colour, _ = figures.styles([variant])[variant]
    return [
        line
        for line in axes.lines
        if to_hex(line.get_color()).upper() == colour
        and len(line.get_xdata()) > 1
        and (line.get_linestyle() == "--") == dashed
    ]


def rings(axes):
    """Where runs are ringed."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_marker() == "o" and line.get_markeredgecolor() == "black"
    ]


def test_a_path_by_hand(study):
    """Start 0.5 of at most 0.9 and 0.6 of at most 1: half of what is left, then a quarter lost."""
    curve = [
        {"step": 4, "kl": 0.2, "reward": 0.8, "quality": 0.5},
        {"step": 0, "kl": 0.0, "reward": 0.5, "quality": 0.6},
        {"step": 2, "kl": -0.01, "reward": 0.7, "quality": 0.8},
    ]
    reward = {**read_json(study.runs[0] / "evaluation.json")["reward"], "ceiling": 0.9}
    fields = {"ctr": 0.3, "ndcg@10": 0.1, "words": 9.0}
    edit(study.runs[0], curve=[{**point, **fields} for point in curve], reward=reward)
    (run,) = load_runs(study.runs[:1], study.audits, study.stats)
    got = overoptimisation.path(run)
    assert got.variant == "no_proj"
    np.testing.assert_array_equal(got.kl, [0, 0, 0.2])
    np.testing.assert_allclose(got.proxy, [0, 0.5, 0.75])
    np.testing.assert_allclose(got.gold, [0, 0.5, -0.25])
    assert got.found is False


@pytest.mark.parametrize("ceiling", [0.5, 0.4])
def test_where_nothing_is_left_to_gain_nothing_is_gained(ceiling):
    assert overoptimisation.gained(np.array([0.5, 0.3]), ceiling).tolist() == [0, 0]


def test_every_seed_is_drawn_in_its_variants_colour(study):
    runs, rows = load(study)
    drawn = overoptimisation.figure(runs, rows)
    assert [axes.get_title().split(",")[0] for axes in drawn.axes] == [
        *("Amazon reviews", "MovieLens", "Steam"),
    ]
    for axes, dataset in zip(drawn.axes, ("books", "ml25m", "steam"), strict=True):
        for variant in ("shielded", "no_proj"):
            own = [
                overoptimisation.path(run)
                for run in runs
                if (run.dataset, run.variant) == (dataset, variant)
            ]
            for dashed, name in ((True, "proxy"), (False, "gold")):
                got = lines(axes, variant, dashed)
                assert len(got) == len(own) > 0
                for one in own:
                    assert any(
                        np.array_equal(line.get_xdata(), one.kl)
                        and np.array_equal(line.get_ydata(), getattr(one, name))
                        for line in got
                    )


def test_rings_mark_the_runs_that_the_evaluation_found(study):
    finding = {
        **read_json(study.runs[0] / "evaluation.json")["overoptimisation"],
        "peak": 8,
        "found": True,
    }
    drawn = overoptimisation.figure(*load(study))
    assert not any(rings(axes) for axes in drawn.axes)
    assert "gold fell, proxy rose" not in [t.get_text() for t in drawn.legends[0].get_texts()]
    edit(study.runs[0], overoptimisation=finding)
    runs, rows = load(study)
    assert [r["dataset"] for r in rows if r["overoptimised"]] == ["steam"]
    drawn = overoptimisation.figure(runs, rows)
    (run,) = [run for run in runs if run.folder == study.runs[0]]
    one = overoptimisation.path(run)
    assert [rings(axes) for axes in drawn.axes] == [[], [], [(one.kl[-1], one.gold[-1])]]
    assert "gold fell, proxy rose" in [t.get_text() for t in drawn.legends[0].get_texts()]


def test_ticks_keep_apart_and_panels_hold_every_run(study):
    runs, rows = load(study)
    for axes in overoptimisation.figure(runs, rows).axes:
        low, high = axes.get_xlim()
        assert low < 0
        assert high > max(line.get_xdata()[-1] for line in lines(axes, "no_proj", True))
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        places = axes.transData.transform([(tick, 0) for tick in ticks])[:, 0]
        assert len(ticks) >= 3
        assert np.diff(places).min() > 0.08 * axes.get_window_extent().width


def test_drawing_is_deterministic_and_leaves_the_defaults_alone(study, tmp_path):
    before = dict(mpl.rcParams)
    for name in ("one", "two"):
        figures.save(overoptimisation.figure(*load(study)), tmp_path / name, ("png",))
    assert dict(mpl.rcParams) == before
    one, two = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two
