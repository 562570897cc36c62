"""One look for every figure: readable at half size and in greyscale."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from IPython.display import Markdown, display

# Dark to light, so that the order survives a black-and-white print; line style and
# marker change with the colour, so that nothing depends on colour alone.
COLOURS = ["#14304f", "#b5442c", "#2a8c82", "#d99a1b", "#7a5ba6", "#8fa3b0"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]
MARKERS = ["o", "s", "^", "D", "v", "P"]


def style() -> None:
    """Set matplotlib's defaults for the book: called by `runtime.start`."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 4.0),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 13,
            "axes.titlesize": 14,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "lines.linewidth": 2,
            "lines.markersize": 6,
            "legend.frameon": False,
            "image.cmap": "cividis",
            "axes.prop_cycle": cycler(color=COLOURS)
            + cycler(linestyle=LINES)
            + cycler(marker=MARKERS),
        }
    )


def show(caption: str) -> None:
    """Show the current figure and, below it, a sentence that says what to see."""
    plt.show()
    display(Markdown(f"*{caption}*"))


def table(rows: pd.DataFrame | list[dict], caption: str, digits: int = 3) -> None:
    """Show rows as a table with a caption; numbers have `digits` significant digits."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    html = frame.to_html(
        index=False, border=0, float_format=lambda x: f"{x:.{digits}g}"
    )
    text = frame.to_string(index=False, float_format=lambda x: f"{x:.{digits}g}")
    display({"text/html": html, "text/plain": text}, raw=True)
    display(Markdown(f"*{caption}*"))
