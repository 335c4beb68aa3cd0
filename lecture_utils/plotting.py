"""Figures and tables that read the same in light and dark, in a slide and in a screen reader."""

import html
import inspect
import io
import json
import re

# Okabe and Ito's palette: told apart by readers with any common colour blindness.
BLUE, ORANGE, GREEN, RED, SKY, PINK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7",
)  # fmt: skip
GREY = "#666666"
PALETTE = (BLUE, ORANGE, GREEN, RED, SKY, PINK)


def figure(width: float = 7.0, height: float = 3.2, columns: int = 1, rows: int = 1, **options):
    """Return ``(figure, axes)`` in the lecture's style: opaque white, no top or right spine."""
    import matplotlib.pyplot as plt

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style | {"axes.prop_cycle": plt.cycler(color=PALETTE)}):
        fig, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)
    fig.patch.set_facecolor("white")
    return fig, axes


def box(ax, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """Draw a box of a diagram with its text in the middle, filled lightly and edged in ``color``."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, facecolor=to_rgba(color, 0.25), edgecolor=color))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def show_figure(fig, alt: str) -> None:
    """Display a figure as PNG with its alternative text, and close it.

    alt: what the figure shows, in one or two sentences.
    """
    import matplotlib.pyplot as plt
    import PIL.Image  # matplotlib's own dependency
    from IPython.display import Image, display

    assert alt.strip(), "describe the figure for those who cannot see it"
    drawn, buffer = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=110, facecolor="white")
    plt.close(fig)
    # 256 colours of the figure's own: a third of the file, and no difference to be seen
    PIL.Image.open(drawn).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE).save(buffer, "png", optimize=True)
    # Not Image(alt=…): Colab's IPython 7 does not know that.
    display(Image(buffer.getvalue()), metadata={"image/png": {"alt": alt}})


# All but tab and newline: what colours, deletes or links text in a terminal or a notebook, what turns its
# direction, and the tags that nobody sees.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def escape_control_characters(text: str) -> str:
    """Return a text that a model or a stranger wrote with its control characters spelt out: ``\\x1b[31m`` and not red.
    As they are, they could hide or repaint what stands beside them."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escape_markdown(text: str) -> str:
    """Return a text for Markdown that shows it as it is: no mark-up, no HTML, no link, and no picture, whose
    address would be asked for as soon as the answer is seen."""
    return re.sub(
        r"[\\`*_{}\[\]()#+!|<>~&$@:.=-]", lambda match: f"&#{ord(match[0])};", escape_control_characters(text)
    )


def _escaped(text) -> str:
    return html.escape(escape_control_characters(str(text)))


def table(rows: list[dict], caption: str = ""):
    """Return rows (dicts with the same keys) as an HTML table; every value is escaped, control characters are spelt out.

    Numbers are set right, texts left.
    """
    from IPython.display import HTML

    head = list(rows[0])
    cell = '<td style="text-align:{side};vertical-align:top">{text}</td>'

    def render(value):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        return cell.format(side="right" if number else "left", text=_escaped(text).replace("\n", "<br>"))

    lines = [f"<caption>{_escaped(caption)}</caption>"] if caption else []
    lines.append("<tr>" + "".join(f'<th style="text-align:left">{_escaped(h)}</th>' for h in head) + "</tr>")
    lines += ["<tr>" + "".join(render(row[h]) for h in head) + "</tr>" for row in rows]
    return HTML("<table>" + "\n".join(lines) + "</table>")


def slider(name: str, frames: dict[str, list[tuple[str, float]]], start: int = 0):
    """Return HTML with a slider that moves through ``frames``: value -> bars, each (label, share of 1).

    No widget and no kernel stands behind it, so that it works in slides and exported pages too; where scripts are
    off, the frame ``start`` is seen. The arrow keys move it, in JupyterLab too, and a screen reader says the value.
    """
    from IPython.display import HTML

    bar = (
        '<div style="display:flex;align-items:center"><code style="width:11em;text-align:right;white-space:pre;'
        'background:none">{label}</code><div style="background:{color};height:0.9em;margin:0.2em 0.5em;'
        'width:{width:.1f}%"></div>{share:.1%}</div>'
    )
    shown = []
    for i, bars in enumerate(frames.values()):
        rows = (bar.format(label=_escaped(label), color=BLUE, width=60 * share, share=share) for label, share in bars)
        shown.append(f"<div data-frame{'' if i == start else ' hidden'}>{''.join(rows)}</div>")
    labels = html.escape(json.dumps([escape_control_characters(str(frame)) for frame in frames]), quote=True)
    value = _escaped(list(frames)[start])
    move = (
        "var all=this.closest('div').parentNode,i=+this.value;"
        "all.querySelectorAll('[data-frame]').forEach((f,n)=>{f.hidden=n!=i});"
        "var t=JSON.parse(this.dataset.labels)[i];this.ariaValueText=t;all.querySelector('output').textContent=t"
    )
    # data-lm-…: without it JupyterLab takes the arrow keys for itself
    return HTML(
        f'<div><div><label>{_escaped(name)} <input type="range" min="0" max="{len(frames) - 1}" value="{start}" '
        f'aria-valuetext="{value}" data-lm-suppress-shortcuts="true" data-labels="{labels}" oninput="{move}"></label> '
        f"<output>{value}</output></div>"
        f"{''.join(shown)}</div>"
    )


def show(thing) -> None:
    """Display the source of one of the lecture's functions, classes or modules, highlighted. Raises TypeError
    for a thing that has no source in Python."""
    from IPython.display import HTML, display
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    try:
        source = inspect.getsource(thing)
    except (TypeError, OSError):
        raise TypeError(f"thing={thing!r} has no source in Python: give a function, class or module.") from None
    display(HTML(highlight(source, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True))))
