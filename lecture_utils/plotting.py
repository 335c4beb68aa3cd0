"""Figures and tables that are readable in light and dark themes, on slides and with a screen reader."""

import html
import inspect
import io
import json
import re

# The palette of Okabe and Ito, whose colours readers with any common form of colour blindness can tell apart.
PALETTE = BLUE, ORANGE, GREEN, RED, SKY, PINK = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
GREY = "#666666"


def figure(width: float = 7.0, height: float = 3.2, columns: int = 1, rows: int = 1, **options):
    """Return ``(figure, axes)`` in the style of the lecture: opaque white, without the top and right spines."""
    import matplotlib.pyplot as plt

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style | {"axes.prop_cycle": plt.cycler(color=PALETTE)}):
        fig, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)
    fig.patch.set_facecolor("white")
    return fig, axes


def share_bars(ax, at, hits, total: int, width: float = 0.36, **options) -> None:
    """Draw bars for shares (``hits`` of ``total`` each) with their 95 % intervals (Wilson). ``options`` go to ``ax.bar``."""
    from lecture_utils.evaluation import wilson

    shares = [h / total for h in hits]
    ends = [wilson(h, total) for h in hits]
    down = [max(0.0, share - low) for share, (low, _) in zip(shares, ends, strict=True)]
    up = [max(0.0, high - share) for share, (_, high) in zip(shares, ends, strict=True)]
    ax.bar(at, shares, width, yerr=[down, up], capsize=2, **options)


def box(ax, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """Draw a box of a diagram with centred text, a light fill and an edge in ``color``."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, facecolor=to_rgba(color, 0.25), edgecolor=color))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def show_figure(fig, alt: str) -> None:
    """Display a figure as PNG and close it. ``alt`` is its alternative text, one or two sentences on what it shows."""
    import matplotlib.pyplot as plt
    import PIL.Image  # a dependency of matplotlib
    from IPython.display import Image, display

    assert alt.strip(), "describe the figure for readers who cannot see it"
    drawn, buffer = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=110, facecolor="white")
    plt.close(fig)
    # A palette of 256 colours reduces the file to a third, without a visible difference.
    PIL.Image.open(drawn).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE).save(buffer, "png", optimize=True)
    # IPython 7, which Colab uses, does not support Image(alt=…).
    display(Image(buffer.getvalue()), metadata={"image/png": {"alt": alt}})


# All control characters except tab and newline, which colour, delete or link text in a terminal or a notebook, those
# that change the direction of text, and invisible tag characters.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def escape_control_characters(text: str) -> str:
    """Return a text with its control characters escaped: ``\\x1b[31m`` is shown instead of turning the text red. A text
    written by a model or a stranger could otherwise hide or change what is displayed around it."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _escaped(text) -> str:
    return html.escape(escape_control_characters(str(text)))


def table(rows: list[dict], caption: str = ""):
    """Return rows (dicts with the same keys) as an HTML table, with numbers aligned right and texts left. Every value
    is escaped, including its control characters."""
    from IPython.display import HTML

    head = list(rows[0])

    def render(value):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        text = _escaped(f"{value:,}" if number and isinstance(value, int) else value).replace("\n", "<br>")
        return f'<td style="text-align:{"right" if number else "left"};vertical-align:top">{text}</td>'

    lines = [f"<caption>{_escaped(caption)}</caption>"] if caption else []
    lines.append("<tr>" + "".join(f'<th style="text-align:left">{_escaped(h)}</th>' for h in head) + "</tr>")
    lines += ["<tr>" + "".join(render(row[h]) for h in head) + "</tr>" for row in rows]
    return HTML("<table>" + "\n".join(lines) + "</table>")


def slider(name: str, frames: dict[str, list[tuple[str, float]]], start: int = 0):
    """Return HTML with a slider that moves through ``frames``, which maps each value to its bars (label, share of 1).
    It needs neither a widget nor a kernel, so that it also works in slides and exported pages. Without scripts the
    frame ``start`` is shown. The arrow keys move it, also in JupyterLab, and a screen reader reads the value."""
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
    # Without data-lm-suppress-shortcuts JupyterLab would intercept the arrow keys.
    return HTML(
        f'<div><div><label>{_escaped(name)} <input type="range" min="0" max="{len(frames) - 1}" value="{start}" '
        f'aria-valuetext="{value}" data-lm-suppress-shortcuts="true" data-labels="{labels}" oninput="{move}"></label> '
        f"<output>{value}</output></div>{''.join(shown)}</div>"
    )


def show(thing) -> None:
    """Display the source of one of the lecture's functions, classes or modules with syntax highlighting."""
    from IPython.display import HTML, display
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    try:
        source = inspect.getsource(thing)
    except (TypeError, OSError):
        raise TypeError(f"{thing!r} has no Python source. Pass a function, a class or a module.") from None
    display(HTML(highlight(source, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True))))
