"""Figures of the comparison: what is drawn where, and that it can be read."""

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex

from compared_runs import (
    FAULTS,
    RECOMMENDERS,
    critic_report,
    evaluation,
    interval,
    new_films,
    steps,
    with_model,
)
from figure_checks import check_layout
from shielded_recrl.dialogue.comparison import figures
from shielded_recrl.dialogue.comparison.runs import Run
from shielded_recrl.dialogue.judges.base import HEADS

MODELS = ("meta_llama_llama_2_7b_chat_hf", "mistralai_mistral_7b_instruct_v0_2")


def runs(count: int, models: tuple[str, ...] = ()) -> list[Run]:
    found = []
    for seed in range(count):
        about = evaluation(0.1 + seed / 50, 0.02 * seed - 0.02, seed)
        for model in models:
            with_model(about, model)
        found.append(Run(Path(str(seed)), about, steps(20)))
    return found


def dots(axes) -> list[tuple[float, float, str]]:
    """Place, height and colour of each marker."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_color()))
        for line in axes.lines
        if line.get_marker() not in ("", "None", None)
    ]


def spans(axes) -> list[tuple[float, float]]:
    """Horizontal lines of intervals."""
    return [
        tuple(segment[:, 0].tolist())
        for lines in axes.collections
        for segment in lines.get_segments()
        if segment[0, 1] == segment[1, 1]
    ]


class TestDifferences:
    def test_every_training_has_its_difference_and_interval(self):
        panel = figures.differences(runs(3)).axes[0]
        assert panel.get_title() == "RL − supervised"
        assert [label.get_text() for label in panel.get_yticklabels()] == [
            *("critic", "rules", "unseen")
        ]
        found = dots(panel)
        unseen = [(place, colour) for place, height, colour in found if round(height) == 2]
        assert [place for place, _ in unseen] == pytest.approx([-0.02, 0.0, 0.02])
        assert len({colour for _, colour in unseen}) == 3
        assert len({(place, height) for place, height, _ in found}) == len(found) == 9
        assert len(spans(panel)) == 9
        assert spans(panel)[6] == pytest.approx((-0.03, -0.01))

    def test_panels_are_the_three_pairs_on_one_scale(self):
        drawn = figures.differences(runs(2))
        assert [axes.get_title() for axes in drawn.axes] == [
            *("RL − supervised", "best of 4 − supervised", "RL − best of 4")
        ]
        assert len({axes.get_xlim() for axes in drawn.axes}) == 1

    def test_a_mean_is_drawn_of_several_trainings_only(self):
        def upright(drawn) -> list[float]:
            return [
                segment[0, 0]
                for lines in drawn.axes[0].collections
                for segment in lines.get_segments()
                if segment[0, 0] == segment[1, 0]
            ]

        assert upright(figures.differences(runs(3)))[2] == pytest.approx(0.0)
        assert upright(figures.differences(runs(1))) == []

    def test_a_judge_without_a_score_has_an_empty_row(self):
        found = runs(2, MODELS[:1])
        for run in found:
            for pair in run.evaluation["comparisons"].values():
                pair["scores"][MODELS[0]] = dict.fromkeys(HEADS)
        panel = figures.differences(found).axes[0]
        assert len(panel.get_yticks()) == 4
        assert {round(height) for _, height, _ in dots(panel)} == {0, 1, 3}


class TestTraining:
    def test_curves_are_the_log(self):
        drawn = figures.training(runs(2))
        for axes, key in zip(drawn.axes, ("reward", "reward_critic", "kl"), strict=True):
            assert len(axes.lines) == 2
            assert axes.lines[0].get_xdata().tolist() == [float(n) for n in range(1, 21)]
            assert axes.lines[1].get_ydata().tolist() == [row[key] for row in steps(20)]

    def test_long_logs_are_averaged_in_blocks(self):
        places, values = figures.blocks([(float(n), float(n % 2)) for n in range(1000)])
        assert len(places) == figures.POINTS
        assert places[0] == 4.5
        assert set(values) == {0.5}
        places, _ = figures.blocks([(float(n), 0.0) for n in range(101)])
        assert (len(places), places[-1]) == (51, 100.0)


def test_recommender_stands_beside_its_baselines():
    reached, ahead = figures.recommender(new_films()).axes
    assert [label.get_text() for label in reached.get_yticklabels()] == list(RECOMMENDERS)
    assert [place for place, *_ in dots(reached)] == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2])
    assert len({colour for *_, colour in dots(reached)}) == 2
    assert [place for place, *_ in dots(ahead)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [height for _, height, _ in dots(ahead)] == [1, 2, 3, 4]


def test_critic_is_drawn_against_its_gate():
    report = critic_report()
    report["corruptions"]["cut"]["share"] = interval(0.3)
    heads, faults = figures.critic(report).axes
    assert [label.get_text() for label in heads.get_yticklabels()] == list(HEADS)
    assert [label.get_text() for label in faults.get_yticklabels()] == list(FAULTS)
    for axes, gate in ((heads, 0.0), (faults, 0.5)):
        (shade,) = axes.patches
        assert shade.get_x() + shade.get_width() == pytest.approx(gate)
        low, high = axes.get_xlim()
        assert shade.get_x() == pytest.approx(low)
        assert all(low < end < high for span in spans(axes) for end in span)


@pytest.mark.parametrize(("count", "models"), [(1, ()), (3, MODELS), (14, ())])
def test_nothing_is_cut_off_or_on_top_of_another(count, models):
    check_layout(figures.differences(runs(count, models)))
    check_layout(figures.training(runs(count)))


def test_stages_are_legible_and_the_defaults_stay():
    before = dict(mpl.rcParams)
    check_layout(figures.recommender(new_films()))
    check_layout(figures.critic(critic_report()))
    assert dict(mpl.rcParams) == before
