"""Diagrams in one style: boxes, arrows with shapes, token strips and matrices, drawn with matplotlib.

Lengths are in inches of the figure, and y grows upwards. What a part stands for decides its colour and outline, the same
in all notebooks, so that readers who do not see the colours can tell the parts apart as well::

    d = Diagram(6, 2)
    x = d.box(0.2, 0.7, "x", kind="data")
    w = d.box(2.2, 0.7, "frozen weights", kind="frozen")
    d.arrow(x, w, "(576)")
    d.show("A vector enters the frozen weights.")
"""

from dataclasses import dataclass

from lecture_utils import plotting

# kind -> (colour, outline's width, outline's style)
KINDS = {
    "plain": (plotting.GREY, 1.0, "-"),
    "data": (plotting.BLUE, 1.2, "-"),
    "frozen": (plotting.GREY, 1.2, "--"),
    "trained": (plotting.ORANGE, 2.4, "-"),
    "loss": (plotting.RED, 1.6, ":"),
    "good": (plotting.GREEN, 1.2, "-"),
}


@dataclass(frozen=True)
class Box:
    """A placed rectangle. Its sides are the points where arrows start and end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    def border(self, towards: tuple[float, float]) -> tuple[float, float]:
        """Return the point of the border on the straight line from the centre towards another point."""
        (cx, cy), (tx, ty) = self.center, towards
        dx, dy = tx - cx, ty - cy
        if dx == dy == 0:
            return cx, cy
        share = min(self.width / 2 / abs(dx) if dx else 1e9, self.height / 2 / abs(dy) if dy else 1e9)
        return cx + share * dx, cy + share * dy


class Diagram:
    """A figure to draw a diagram on, ``width`` by ``height`` inches."""

    def __init__(self, width: float, height: float):
        self.figure, self.axes = plotting.figure(width, height)
        self.axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axes.axis("off")

    def box(
        self, x, y, text: str = "", width=1.4, height=0.55, kind: str = "plain", size=9.5, fill=0.18, line=None
    ) -> Box:
        """Draw a box with its lower left corner at (x, y) and return it. ``line`` is the width of a solid outline, in
        place of the kind's own."""
        from matplotlib.colors import to_rgba
        from matplotlib.patches import FancyBboxPatch

        color, width_of_kind, style = KINDS[kind]
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.06", facecolor=to_rgba(color, fill),
                edgecolor=color, linewidth=line or width_of_kind, linestyle="-" if line else style,
            )
        )  # fmt: skip
        self.text(x + width / 2, y + height / 2, text, size=size)
        return Box(x, y, width, height)

    def text(self, x, y, text: str, size=9.5, align="center", color="black", **style) -> None:
        """Write a text whose middle (or ``align``: left or right end) is at (x, y)."""
        self.axes.text(x, y, text, ha=align, va="center", fontsize=size, color=color, **style)

    def arrow(self, start, end, label: str = "", above=True, bend=0.0, dashed=False, color="#333333") -> None:
        """Draw an arrow between two boxes, or points, with a label such as a shape beside its middle.

        bend: how far the middle of the arrow is moved to its left, as a share of its length.
        """
        middle = {id(p): p.center if isinstance(p, Box) else p for p in (start, end)}
        a = start.border(middle[id(end)]) if isinstance(start, Box) else start
        b = end.border(middle[id(start)]) if isinstance(end, Box) else end
        style = {
            "arrowstyle": "-|>",
            "color": color,
            "lw": 1.2,
            "shrinkA": 1,
            "shrinkB": 1,
            "linestyle": "--" if dashed else "-",
        }
        self.axes.annotate("", b, a, arrowprops=style | {"connectionstyle": f"arc3,rad={-bend}"})
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = (dx**2 + dy**2) ** 0.5 or 1.0
        side = 0.13 if above else -0.13
        x = (a[0] + b[0]) / 2 - dy / length * (side + bend * length / 2)
        y = (a[1] + b[1]) / 2 + dx / length * (side + bend * length / 2)
        if abs(dy) > abs(dx):  # beside a steep arrow
            self.text(x + (0.02 if x > a[0] else -0.02), y, label, size=8, align="left" if x > a[0] else "right")
        else:
            self.text(x, y, label, size=8)

    def strip(self, x, y, tokens, kinds=None, values=None, below=None, height=0.36, size=8.5) -> list[Box]:
        """Draw tokens one after the other, and return their boxes.

        kinds: the kind of each token. values: instead, a number from 0 to 1 for each, which decides how dark it is.
        below: a text under each token, such as its label or its loss.
        """
        boxes = []
        for i, token in enumerate(tokens):
            shown = token.replace("\n", "↵")
            width = 0.16 + 0.083 * max(len(shown), len(below[i]) if below else 0)
            kind = kinds[i] if kinds else "data"
            fill = 0.05 + 0.75 * values[i] if values is not None else 0.3 if kind == "trained" else 0.12
            boxes.append(self.box(x, y, shown, width, height, kind, size, fill))
            if below:
                self.text(x + width / 2, y - 0.15, below[i], size=7.5)
            x += width + 0.03
        return boxes

    def matrix(self, x, y, rows: int, columns: int, cell=0.16, kind="data", highlight=(), values=None, label="") -> Box:
        """Draw a grid of cells with its lower left corner at (x, y), and its label above it. Return its outline.

        highlight: (row, column) of cells that are filled, counted from the upper left. values: numbers from 0 to 1.
        """
        from matplotlib.colors import to_rgba
        from matplotlib.patches import Rectangle

        color, line, style = KINDS[kind]
        for i in range(rows):
            for j in range(columns):
                fill = values[i][j] if values is not None else 0.75 if (i, j) in highlight else 0.1
                corner = (x + j * cell, y + (rows - 1 - i) * cell)
                self.axes.add_patch(
                    Rectangle(corner, cell, cell, facecolor=to_rgba(color, fill), edgecolor="white", lw=0.6)
                )
        outline = Rectangle((x, y), columns * cell, rows * cell, fill=False, edgecolor=color, lw=line, linestyle=style)
        self.axes.add_patch(outline)
        self.text(x + columns * cell / 2, y + rows * cell + 0.14, label)
        return Box(x, y, columns * cell, rows * cell)

    def legend(self, x, y, **kinds: str) -> None:
        """Explain kinds in a row that begins at (x, y): ``legend(0, 0, frozen="frozen", trained="trained")``."""
        for kind, text in kinds.items():
            self.box(x, y - 0.08, "", 0.24, 0.16, kind)
            self.text(x + 0.3, y, text, size=8, align="left")
            x += 0.45 + 0.075 * len(text)

    def show(self, alt: str) -> None:
        """Display the diagram with its alternative text."""
        plotting.show_figure(self.figure, alt)


STOPS = ("language\nmodels", "architecture", "pretraining", "supervised\nfinetuning", "human\nfeedback", "LoRA",
         "quantization", "QLoRA", "retrieval", "prompting", "limits and\nethics", "foundation\nmodels", "evaluation",
         "reasoning", "agents")  # fmt: skip
HANDED_ON = ("next\ntoken", "a block", "base\nmodel", "an assistant", "memory\nbill", "an\nadapter", "4 bits",
             "a model that has learned a task", "facts in\nthe prompt", "measured\nhabits", "what is\ninherited",
             "a claim\nto test", "a measure", "written\nsteps")  # fmt: skip


def course_map(path: tuple[int, ...]) -> None:
    """Draw the notebooks of the course, and what each hands on to the next. ``path``: those with a thick frame."""
    d = Diagram(9.6, 5.7)
    kinds, boxes = ("data", "trained", "good", "frozen"), []
    for i, stop in enumerate(STOPS):
        row, column = divmod(i, 4)
        x = 3 - column if row % 2 else column  # every second row runs back
        text = f"{i + 1:02}\n{stop}"
        line = 3.5 if i + 1 in path else 1.2
        boxes.append(d.box(1.2 + 2.2 * x, 4.6 - 1.45 * row, text, 1.3, 0.85, kinds[row], line=line))
    for here, there, what in zip(boxes, boxes[1:], HANDED_ON, strict=False):
        d.arrow(here, there)
        (x, y), (u, v) = here.center, there.center
        side = "center" if y == v else "left" if x < 4 else "right"
        at = (x + u) / 2 + {"center": 0, "left": 0.1, "right": -0.1}[side]
        d.text(at, (y + v) / 2 + 0.27 * (y == v), what, 7, side)
    for row, name in enumerate(("making", "adapting", "using and\njudging", "after\n2023")):
        d.text(0.55, 5.02 - 1.45 * row, name, weight="bold")
    chosen = f" {', '.join(f'{n:02}' for n in path)} have a thick frame."
    d.show(
        "A map of the notebooks in rows of four, joined by arrows in order: making, adapting, using and judging, and what "
        "came after 2023, which is evaluation, reasoning and agents." + chosen
    )
