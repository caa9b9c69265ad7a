"""The look of every figure: colours of the light and the dark page, a blank sheet, axes and colour bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
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
