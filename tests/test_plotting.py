import pytest

from lecture_utils import plotting


def test_table_escapes_what_a_model_may_have_written():
    html = plotting.table([{"answer": "<script>alert(1)</script>\nnext"}], "a <b>").data
    assert "<script>" not in html and "&lt;script&gt;" in html and "<br>next" in html and "a &lt;b&gt;" in html


def test_table_sets_numbers_right_with_separators():
    html = plotting.table([{"n": 1234567, "x": 0.5, "t": "text", "ok": True}]).data
    assert ">1,234,567<" in html and html.count("text-align:right") == 2


def test_figures_are_opaque_and_need_alt_text():
    fig, _ = plotting.figure()
    assert fig.patch.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    with pytest.raises(AssertionError):
        plotting.show_figure(fig, " ")


def test_show_figure_stores_the_alt_text(monkeypatch):
    shown = {}
    monkeypatch.setattr("IPython.display.display", lambda image, metadata: shown.update(metadata))
    fig, _ = plotting.figure()
    plotting.show_figure(fig, "A figure of nothing at all.")
    assert shown == {"image/png": {"alt": "A figure of nothing at all."}}


def test_show_prints_the_source(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda item: shown.append(item.data))
    plotting.show(plotting.figure)
    assert "opaque" in shown[0] and "<pre" in shown[0]


def test_slider_shows_one_frame_and_escapes():
    page = plotting.slider("heat", {"<cold>": [("<b>", 1.0)], "warm": [("a", 0.25), ("b", 0.75)]}, start=1).data
    assert page.count("<div data-frame") == 2 and page.count("<div data-frame hidden") == 1
    assert page.index("<div data-frame hidden") < page.index("&lt;b&gt;")  # the first is the hidden one
    assert "<b>" not in page and "<cold>" not in page and 'max="1" value="1"' in page
    assert "<output>warm</output>" in page and 'aria-valuetext="warm"' in page and "75.0%" in page
