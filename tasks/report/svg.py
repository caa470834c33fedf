"""A drawing as an SVG element. Axes and text have the page's colour; text stays text, to be searched.

Matplotlib draws ink in one sentinel colour, which becomes `currentColor`: one file serves light, dark and
print.
"""

import io
import re
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#010203"
# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by lightness and marker.
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8a8f98"
_WIDTH_INCHES = 8.4
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "keiryo",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


def draw_svg(name: str, height_inches: float, draw: Callable[[Figure], None]) -> str:
    """Draw and return an `<svg>` element whose ids begin with `name`, so that several fit on one page."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches))
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(id="|"#|url\(#)', rf"\g<1>{name}-", text)
