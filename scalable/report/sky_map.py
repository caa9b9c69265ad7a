"""The map of a catalogue: its leaves on the tangent plane, around a pole, or on the whole sky."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from scalable.report.style import LIGHT, WIDTH, Theme, colour_bar, colour_map, sentence, sheet, style_axes

Floats = NDArray[np.float64]

WIDE_SKY_DEG = 30.0
"""A footprint of a larger radius is drawn as a Mollweide map, a smaller one on the tangent plane [deg]."""
NUMBERED = 60
"""With more partitions than these a map shows their borders only."""


def sky_map(
    outlines: Sequence[tuple[Floats, Floats]], rows: Sequence[int], partition: Sequence[int], *, theme: Theme = LIGHT
) -> Figure:
    """Draw leaves on the sky shaded by their rows, with borders and numbers of the partitions; right ascension grows leftwards.

    A footprint up to 30 deg around its centre is drawn on the tangent plane there, a larger one as a Mollweide map. Neither
    minds right ascension 0 or a pole.

    Parameters
    ----------
    outlines : sequence of (ra_deg, dec_deg)
        Outline of each leaf [deg], two arrays of shape (k,).
    rows : sequence of int
        Rows of each leaf.
    partition : sequence of int
        Partition of each leaf.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    if not outlines:
        return sentence("no leaf to show", theme)
    ra = np.concatenate([leaf[0] for leaf in outlines])
    centre_ra, centre_dec, radius = _centre(ra, np.concatenate([leaf[1] for leaf in outlines]))
    if radius <= WIDE_SKY_DEG:
        polygons = [_gnomonic(leaf[0], leaf[1], centre_ra, centre_dec) for leaf in outlines]
        leaf_of = np.arange(len(outlines))
        figure, axes = _plane(np.concatenate(polygons), centre_ra, centre_dec, theme)
    else:
        polygons, leaf_of = _both_sides(outlines, centre_ra)
        figure, axes = _whole_sky(centre_ra, theme)
    numbers, counts = np.asarray(partition)[leaf_of], np.asarray(rows, dtype=np.float64)[leaf_of]
    scale = Normalize(0, max(float(counts.max()), 1.0))
    leaves = PolyCollection(polygons, array=counts, cmap=colour_map(theme), norm=scale, edgecolors=theme.paper, linewidths=0.4)
    halo = [withStroke(linewidth=2.5, foreground=theme.paper)]
    borders = LineCollection(list(_borders(polygons, numbers)), colors=theme.ink, linewidths=1.2, path_effects=halo)
    for collection, height in ((leaves, 2.0), (borders, 3.0)):
        collection.set_zorder(height)
        axes.add_collection(collection, autolim=False)
        collection.set_clip_path(axes.patch if radius <= WIDE_SKY_DEG else axes.patches[0])
    for number, (x, y) in _anchors(polygons, numbers).items():
        axes.text(x, y, number, size=8.5, weight="bold", color=theme.ink, ha="center", va="center", path_effects=halo, zorder=4)
    colour_bar(figure, leaves, [axes], "Rows per leaf", theme)
    return figure


def _centre(ra_deg: Floats, dec_deg: Floats) -> tuple[float, float, float]:
    """Return right ascension and declination of the mean direction, and the farthest point's distance from it [deg]."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    vectors = np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    mean = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        return 0.0, 0.0, 180.0
    mean /= length
    radius = math.degrees(math.acos(float(np.clip((vectors @ mean).min(), -1, 1))))
    return math.degrees(math.atan2(mean[1], mean[0])) % 360, math.degrees(math.asin(float(np.clip(mean[2], -1, 1)))), radius


def _gnomonic(ra_deg: Floats, dec_deg: Floats, centre_ra: float, centre_dec: float) -> Floats:
    """Project onto the tangent plane [deg], shape (n, 2), x eastwards; NaN beyond 85 deg from the centre."""
    ra, dec, at = np.radians(ra_deg - centre_ra), np.radians(dec_deg), math.radians(centre_dec)
    depth = math.sin(at) * np.sin(dec) + math.cos(at) * np.cos(dec) * np.cos(ra)
    depth = np.where(depth > math.cos(math.radians(85)), depth, np.nan)
    north = math.cos(at) * np.sin(dec) - math.sin(at) * np.cos(dec) * np.cos(ra)
    return np.degrees(np.column_stack([np.cos(dec) * np.sin(ra) / depth, north / depth]))


def _from_plane(x: Floats, y: Floats, centre_dec: float) -> tuple[Floats, Floats]:
    """Return right ascension from the centre's, in [-180, 180], and declination [deg] of points on the tangent plane [deg]."""
    east, north, at = np.radians(x), np.radians(y), math.radians(centre_dec)
    ra = np.arctan2(east, math.cos(at) - north * math.sin(at))
    dec = np.arctan2(math.sin(at) + north * math.cos(at), np.hypot(east, math.cos(at) - north * math.sin(at)))
    return np.degrees(ra), np.degrees(dec)


def _plane(points: Floats, centre_ra: float, centre_dec: float, theme: Theme) -> tuple[Figure, Axes]:
    """Return axes on the tangent plane around ``points``, with lines of right ascension and declination."""
    low, high = points.min(axis=0), points.max(axis=0)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ratio = float((high[0] - low[0]) / (high[1] - low[1]))
    height = float(np.clip((WIDTH - 2) / ratio, 2.5, 6.0))
    figure = sheet(float(np.clip(height * ratio + 2, 5.5, WIDTH)), height + 0.6, theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, "Right ascension [deg]", "Declination [deg]")
    axes.grid(visible=False)
    axes.set(aspect="equal", xlim=(high[0], low[0]), ylim=(low[1], high[1]))
    pole = math.copysign(math.degrees(math.tan(math.radians(90 - abs(centre_dec)))), centre_dec)
    if low[1] < pole < high[1]:
        _polar_lines(axes, low, high, centre_ra, centre_dec, theme)
    else:
        _lines(axes, low, high, centre_ra, centre_dec, theme)
    return figure, axes


def _lines(axes: Axes, low: Floats, high: Floats, centre_ra: float, centre_dec: float, theme: Theme) -> None:
    """Draw meridians and parallels in a frame without a pole; number them below and on the left."""
    along, up = np.linspace(low[0], high[0], 201), np.linspace(low[1], high[1], 201)
    below, _ = _from_plane(along, np.full(201, low[1]), centre_dec)
    above, _ = _from_plane(along, np.full(201, high[1]), centre_dec)
    _, left = _from_plane(np.full(201, high[0]), up, centre_dec)
    _, middle = _from_plane(np.zeros(201), up, centre_dec)
    ras, step = _round_values(centre_ra + below[0], centre_ra + below[-1])
    decs, dec_step = _round_values(left[0], left[-1])
    axes.set_xticks(np.interp(ras - centre_ra, below, along), [_degrees(ra % 360, step) for ra in ras])
    axes.set_yticks(np.interp(decs, left, up), [_degrees(dec, dec_step) for dec in decs])
    edge = min(below[0], above[0]), max(below[-1], above[-1])
    every_ra, _ = _round_values(centre_ra + edge[0], centre_ra + edge[1], step)
    lowest, highest = min(left[0], middle[0]), max(left[-1], middle[-1])
    every_dec, _ = _round_values(lowest, highest, dec_step)
    curves = [_gnomonic(np.full(101, ra), np.linspace(lowest, highest, 101), centre_ra, centre_dec) for ra in every_ra]
    curves += [_gnomonic(centre_ra + np.linspace(*edge, 101), np.full(101, dec), centre_ra, centre_dec) for dec in every_dec]
    _draw_lines(axes, curves, theme)


def _polar_lines(axes: Axes, low: Floats, high: Floats, centre_ra: float, centre_dec: float, theme: Theme) -> None:
    """Draw meridians and parallels in a frame that holds a pole; number meridians where they leave it, parallels on the way."""
    axes.set(xticks=[], yticks=[], xlabel="Right ascension around the pole, declination on the circles [deg]", ylabel="")
    axes.spines[["top", "right"]].set(visible=True, color=theme.muted, linewidth=0.7)
    south = centre_dec < 0
    farthest = float(np.hypot(*np.maximum(np.abs(low), np.abs(high)))) + 90 - abs(centre_dec)
    distance = np.linspace(0, min(farthest, 80.0), 400)
    circles, step = _round_values(0.0, float(np.min(high - low)) / 2, about=3)
    curves = []
    for ra in np.arange(0.0, 360.0, 30.0):
        curve = _gnomonic(np.full(400, ra), (distance - 90) if south else (90 - distance), centre_ra, centre_dec)
        curves.append(curve)
        inside = np.flatnonzero(((curve > low + 0.03 * (high - low)) & (curve < high - 0.03 * (high - low))).all(axis=1))
        if inside.size and np.hypot(*(curve[inside[-1]] - curve[0])) > 0.2 * np.min(high - low):
            _place(axes, curve[inside[-1]], f"{ra:.0f}", theme)
    around = np.linspace(0, 360, 361)
    for radius in circles[circles > 0]:
        dec = radius - 90 if south else 90 - radius
        curves.append(_gnomonic(around, np.full(361, dec), centre_ra, centre_dec))
        spot = _gnomonic(np.array([centre_ra + 195.0 // 30 * 30 + 15]), np.array([dec]), centre_ra, centre_dec)[0]
        if (spot > low).all() and (spot < high).all():
            _place(axes, spot, _degrees(dec, step), theme)
    _draw_lines(axes, curves, theme)


def _whole_sky(centre_ra: float, theme: Theme) -> tuple[Figure, Axes]:
    """Return axes of a Mollweide map around a right ascension; its frame is the first patch."""
    figure = sheet(WIDTH, 4.9, theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, "Right ascension on the equator, declination at the edge [deg]")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(aspect="equal", xlim=(188, -188), ylim=(-94, 94), xticks=[], yticks=[])
    frame = Ellipse((0, 0), 360, 180, facecolor="none", edgecolor=theme.muted, linewidth=0.8, zorder=3.5)
    axes.add_patch(frame)
    side, tall = np.linspace(-180, 180, 181), np.linspace(-90, 90, 181)
    curves = [_mollweide(np.full(181, ra), tall) for ra in np.arange(-150.0, 151.0, 30.0)]
    for dec in np.arange(-60.0, 61.0, 30.0):
        curves.append(_mollweide(side, np.full(181, dec)))
        _place(axes, curves[-1][-1] * 1.04, _degrees(dec, 1.0), theme)
    for away in np.arange(-120.0, 121.0, 60.0):
        _place(axes, np.array([away, -5.0]), f"{(centre_ra + away) % 360:.0f}", theme)
    _draw_lines(axes, curves, theme)
    return figure, axes


def _mollweide(from_centre: Floats, dec_deg: Floats) -> Floats:
    """Project to an ellipse of 360 by 180, shape (n, 2); right ascension counts from the centre's and may pass 180 [deg]."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, 4001)
    theta = np.interp(np.sin(np.radians(dec_deg)), (2 * angle + np.sin(2 * angle)) / math.pi, angle)
    return np.column_stack([from_centre * np.cos(theta), 90 * np.sin(theta)])


def _both_sides(outlines: Sequence[tuple[Floats, Floats]], centre_ra: float) -> tuple[list[Floats], NDArray[np.int64]]:
    """Project outlines for a map of the whole sky, those over its edge on both sides; return them and the leaf of each."""
    polygons, leaf_of = [], []
    for leaf, (ra, dec) in enumerate(outlines):
        own, _, _ = _centre(ra, dec)
        middle = (own - centre_ra + 180) % 360 - 180
        from_centre = middle + (ra - own + 180) % 360 - 180
        for turn in (-360.0, 0.0, 360.0):
            if (np.abs(from_centre + turn) < 180).any():
                polygons.append(_mollweide(from_centre + turn, dec))
                leaf_of.append(leaf)
    return polygons, np.array(leaf_of)


def _borders(polygons: Sequence[Floats], numbers: NDArray[Any]) -> Floats:
    """Return the pieces of outlines with another partition, or none, on their outer side, shape (n, 2, 2).

    A point is put just outside each piece, and looked for in the polygons of the same partition: leaves of different orders
    share no corners, so that comparing pieces would not do.
    """
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    along = ends - starts
    owner = np.repeat(numbers, [len(polygon) for polygon in polygons])
    area = [np.sum(p[:, 0] * np.roll(p[:, 1], -1) - np.roll(p[:, 0], -1) * p[:, 1]) for p in polygons]
    turn = np.repeat(np.sign(area), [len(polygon) for polygon in polygons])[:, None]
    probes = (starts + ends) / 2 + 0.05 * turn * np.column_stack([along[:, 1], -along[:, 0]])
    by_x = np.argsort(probes[:, 0])
    sorted_x = probes[by_x, 0]
    inner = np.zeros(len(probes), dtype=bool)
    for polygon, number in zip(polygons, numbers, strict=True):
        near = by_x[slice(*np.searchsorted(sorted_x, (polygon[:, 0].min(), polygon[:, 0].max())))]
        near = near[owner[near] == number]
        inner[near] |= Outline(polygon).contains_points(probes[near])
    return np.stack([starts, ends], axis=1)[~inner & (along != 0).any(axis=1)]


def _anchors(polygons: Sequence[Floats], numbers: NDArray[Any]) -> dict[str, Floats]:
    """Return where the number of each partition stands: the middle of its leaf nearest to its own middle."""
    names = np.unique(numbers)
    if names.size > NUMBERED:
        return {}
    middles = np.array([polygon.mean(axis=0) for polygon in polygons])
    places = {}
    for name in names:
        own = middles[numbers == name]
        places[str(name)] = own[np.argmin(np.hypot(*(own - own.mean(axis=0)).T))]
    return places


def _round_values(low: float, high: float, step: float | None = None, *, about: int = 5) -> tuple[Floats, float]:
    """Return the multiples of a step from ``low`` to ``high``, and the step: a round one that makes ``about`` of them."""
    if step is None:
        wanted = max((high - low) / about, 1e-7)
        choices = [digit * 10.0**power for power in range(-7, 1) for digit in (1, 2, 5)] + [10.0, 15.0, 30.0, 60.0]
        step = min(choices, key=lambda choice: abs(math.log(choice / wanted)))
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1, dtype=np.float64) * step, step


def _degrees(value: float, step: float) -> str:
    """Write degrees with the decimals that a step needs."""
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")


def _place(axes: Axes, at: Floats, text: str, theme: Theme) -> None:
    """Write the number of a meridian or parallel on a map."""
    halo = [withStroke(linewidth=2.2, foreground=theme.paper)]
    axes.text(at[0], at[1], text, size=7.5, color=theme.muted, ha="center", va="center", path_effects=halo, zorder=3.6)


def _draw_lines(axes: Axes, curves: Sequence[Floats], theme: Theme) -> None:
    """Draw the faint lines of right ascension and declination over the leaves."""
    axes.add_collection(LineCollection(curves, colors=theme.muted, linewidths=0.5, alpha=0.4, zorder=2.5), autolim=False)
