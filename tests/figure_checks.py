"""What every figure has to keep at print size: nothing cut off, nothing on top of another."""

from __future__ import annotations

from itertools import combinations, pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

LEAST_FONT = 5.5
# Points between two labels beside each other.
TICK_GAP = 2.5
# Pixels that rounding may take.
SLACK = 1.0


def texts_of(axes: Axes) -> list[Text]:
    """Title, labels and tick labels that are drawn; not what is written into the panel."""
    ticks = [
        tick.label1
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    found = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *ticks]
    if not axes.axison:
        found = [axes.title]
    return [text for text in found if text.get_visible() and text.get_text()]


def check_tick_labels(axes: Axes) -> None:
    """Labels of two ticks of an axis read as two."""
    if not axes.axison:
        return
    least = TICK_GAP * axes.figure.dpi / 72
    for axis, start, end in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
        low, high = sorted(axis.get_view_interval())
        labels = [
            tick.label1
            for tick in axis.get_major_ticks()
            if low <= tick.get_loc() <= high
            and tick.label1.get_text()
            and tick.label1.get_visible()
        ]
        boxes = sorted(
            (text.get_window_extent() for text in labels), key=lambda b: getattr(b, start)
        )
        for one, other in pairwise(boxes):
            gap = getattr(other, start) - getattr(one, end)
            assert gap >= (least if axis is axes.xaxis else 0), (axes.get_xlabel(), labels)


def check_layout(figure: Figure) -> None:
    """Every text is inside the figure, large enough to read, and on no other text."""
    figure.draw_without_rendering()
    whole = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    slack = SLACK / figure.dpi
    assert min(whole.x0, whole.y0) >= -slack, whole
    assert whole.x1 <= width + slack, whole
    assert whole.y1 <= height + slack, whole
    around = [text for axes in figure.axes for text in texts_of(axes)]
    around += [text for legend in figure.legends for text in legend.get_texts()]
    inside = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    for text in (*around, *inside):
        assert text.get_fontsize() >= LEAST_FONT, text
        box = Text.get_window_extent(text)
        assert box.x0 >= -SLACK, text
        assert box.y0 >= -SLACK, text
        assert box.x1 <= figure.bbox.x1 + SLACK, text
        assert box.y1 <= figure.bbox.y1 + SLACK, text
    for axes in figure.axes:
        check_tick_labels(axes)
    boxes = [(text, text.get_window_extent().padded(-SLACK)) for text in around]
    for (one, box), (other, second) in combinations(boxes, 2):
        assert not box.overlaps(second), (one, other)
