import pytest

from lecture_utils import data, diagrams


@pytest.fixture
def diagram():
    return diagrams.Diagram(6, 3)


def test_arrows_start_and_end_on_the_borders_of_their_boxes(diagram):
    left, right = diagram.box(0, 0, "a", width=1, height=1), diagram.box(3, 0, "b", width=1, height=1)
    assert left.border(right.center) == (1, 0.5) and right.border(left.center) == (3, 0.5)
    above = diagram.box(0, 2, "c", width=1, height=1)
    assert left.border(above.center) == (0.5, 1) and left.border(left.center) == left.center
    diagram.arrow(left, right, "(2, 3)")
    arrow = next(text for text in diagram.axes.texts if text.get_text() == "" and hasattr(text, "arrow_patch"))
    assert arrow.xyann == (1, 0.5) and arrow.xy == (3, 0.5)
    label = next(text for text in diagram.axes.texts if text.get_text() == "(2, 3)")
    assert label.get_position()[0] == pytest.approx(2) and label.get_position()[1] > 0.5


def test_a_strip_has_its_tokens_in_order_without_overlap(diagram):
    boxes = diagram.strip(0, 0, ["How", " many", "\n"], kinds=["data", "data", "trained"], below=["1", "2", "3"])
    assert [text.get_text() for text in diagram.axes.texts] == ["How", "1", " many", "2", "↵", "3"]
    assert all(a.x + a.width < b.x for a, b in zip(boxes, boxes[1:], strict=False))


def test_a_matrix_fills_the_highlighted_cells_counted_from_the_upper_left(diagram):
    outline = diagram.matrix(1, 1, 2, 3, cell=0.5, highlight=[(0, 2)])
    assert (outline.width, outline.height) == (1.5, 1.0)
    dark = [patch for patch in diagram.axes.patches if patch.get_facecolor()[3] > 0.5]
    assert [patch.get_xy() for patch in dark] == [(2.0, 1.5)]


def test_kinds_differ_without_colour_and_a_wrong_one_is_refused(diagram):
    outlines = [(width, style) for _, width, style in diagrams.KINDS.values()]
    frozen, trained, loss = (diagrams.KINDS[kind][1:] for kind in ("frozen", "trained", "loss"))
    assert len({frozen, trained, loss}) == 3 and len(outlines) == len(diagrams.KINDS)
    with pytest.raises(KeyError, match="frosen"):
        diagram.box(0, 0, "x", kind="frosen")


def test_show_needs_a_description(diagram):
    with pytest.raises(AssertionError):
        diagram.show("")


def test_the_map_has_every_notebook_and_thick_frames_for_a_path(monkeypatch):
    shown = []
    monkeypatch.setattr(diagrams.plotting, "show_figure", lambda figure, alt: shown.append((figure.axes[0], alt)))
    assert len(diagrams.STOPS) == len(data.outline()) == len(diagrams.HANDED_ON) + 1
    diagrams.course_map(path=(1, 8))
    ((axes, alt),) = shown
    assert sum(patch.get_linewidth() == 3.5 for patch in axes.patches) == 2 and "01, 08 have a thick frame" in alt
