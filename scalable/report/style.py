"""The look of every figure: colours of the light and the dark page, a blank sheet, axes, heads, densities and colour bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH = 10.0
"""Width of a figure [inch]."""


@dataclass(frozen=True)
class Theme:
    """The colours of a page and its figures; ``cmap`` runs from few to many."""

    name: str
    paper: str
    ink: str
    muted: str
    faint: str
    accent: str
    alert: str
    cmap: tuple[str, ...]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2127",
    muted="#5a6470",
    faint="#dde1e6",
    accent="#3a78ad",
    alert="#c2410c",
    cmap=("#cfe0ee", "#7fb0d6", "#3a78ad", "#1f4a80", "#101f47"),
)
DARK = Theme(
    name="dark",
    paper="#15181c",
    ink="#e7e9ec",
    muted="#9ba5b0",
    faint="#343b44",
    accent="#5fa3d6",
    alert="#f5a742",
    cmap=("#22405c", "#2f6f9f", "#5fa3d6", "#a9d3ef", "#f4fbff"),
)


def sheet(width: float, height: float, theme: Theme) -> Figure:
    """Return an empty figure [inch] on the theme's paper that no global state knows of."""
    figure = Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def sentence(text: str, theme: Theme) -> Figure:
    """Return a slim figure that says why there is nothing to see."""
    figure = sheet(WIDTH, 1.0, theme)
    note(figure.add_subplot(), text, theme)
    return figure


def style_axes(axes: Axes, theme: Theme, xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the theme's colours, a faint grid and no box."""
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=theme.muted, linewidth=0.7)
    axes.grid(color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=theme.muted, labelcolor=theme.muted, labelsize=8, width=0.7)
    axes.set_xlabel(xlabel, size=9, color=theme.ink)
    axes.set_ylabel(ylabel, size=9, color=theme.ink)


def colour_bar(figure: Figure, mesh: Any, axes: list[Axes], label: str, theme: Theme) -> None:
    """Add a slim colour bar on the right of axes."""
    bar = figure.colorbar(mesh, ax=axes, aspect=36, pad=0.02, fraction=0.06)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bar.ax.tick_params(color=theme.muted, labelcolor=theme.muted, labelsize=8, width=0.7)
    bar.set_label(label, size=9, color=theme.ink)


def colour_map(theme: Theme) -> Any:
    """Return the theme's colour map, from few to many."""
    return LinearSegmentedColormap.from_list(theme.name, theme.cmap)


def note(axes: Axes, text: str, theme: Theme) -> None:
    """Write a sentence in place of an empty frame."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, size=9.5, style="italic", color=theme.muted, ha="center", va="center")


def header(axes: Axes, name: str, counts: str, theme: Theme) -> None:
    """Write a name and a line of counts over a panel."""
    head = axes.annotate(counts, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", size=8, va="bottom")
    head.set_color(theme.muted)
    name_over = 16 + 11 * counts.count("\n") if counts else 5
    head = axes.annotate(name, (0, 1), (0, name_over), xycoords="axes fraction", textcoords="offset points", size=9, va="bottom")
    head.set(color=theme.ink, weight="bold")


def limits(values: Floats) -> tuple[float, float]:
    """Return the range of all but the outermost 0.05 % on each side, a little widened."""
    low, high = np.percentile(values, (0.05, 99.95))
    margin = 0.03 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def density(axes: Axes, columns: Floats, rows: Floats, counts: Floats, theme: Theme) -> Any:
    """Shade cells by the logarithm of their counts, shape (rows, columns); empty cells stay paper."""
    norm = LogNorm(1, max(2.0, float(counts.max())))
    return axes.pcolormesh(columns, rows, np.ma.masked_equal(counts, 0), cmap=colour_map(theme), norm=norm, rasterized=True)
