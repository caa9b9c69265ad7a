import ast
from dataclasses import fields as fields_of
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from scalable.report import page, plots
from scalable.report.plots import (
    accounting,
    colour_by_id,
    colour_colour,
    deviation_by_id,
    magnitudes,
)
from scalable.report.sky_map import sky_map
from scalable.report.style import DARK, LIGHT
from scalable.sky.healpix import outline, to_pixels
from scalable.sky.pixel import Pixel

THEMES = [pytest.param(LIGHT, id="light"), pytest.param(DARK, id="dark")]
NAN = np.full(50, np.nan)
IDS = np.arange(50)
UNDEFINED = "one epoch: variability undefined"


def words(figure):
    """All text that a figure shows."""
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [axes.get_legend() for axes in figure.axes]
    return texts + [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def draw(figure):
    """Draw coarsely: what is wrong with a figure often shows only then, as a warning."""
    figure.set_dpi(30)
    figure.canvas.draw()
    return figure


def leaves(ra, dec, radius, order):
    """Outlines of the pixels of a cap."""
    sphere = np.random.default_rng(7).normal(size=(20_000, 3))
    sphere /= np.linalg.norm(sphere, axis=1)[:, None]
    a, d = np.radians(ra), np.radians(dec)
    inside = sphere[sphere @ [np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)] > np.cos(np.radians(radius))]
    lon, lat = np.degrees(np.arctan2(inside[:, 1], inside[:, 0])) % 360, np.degrees(np.arcsin(inside[:, 2]))
    return [outline(Pixel(order, int(index))) for index in np.unique(to_pixels(lon, lat, order))]


def polygons(figure):
    [shaded] = [item for item in figure.axes[0].collections if isinstance(item, PolyCollection)]
    return [path.vertices for path in shaded.get_paths()]


def borders(figure):
    """Pieces of partition borders: the lines drawn over the leaves."""
    highest = max(figure.axes[0].collections, key=lambda item: item.get_zorder())
    return np.array(highest.get_segments())


def lightness(colour):
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def test_a_colour_panel_counts_what_lies_above_the_threshold():
    colour = np.where(IDS < 7, 2.0, 0.5)
    colour[40:] = np.nan
    said = words(colour_by_id({"1": (IDS, colour), "south": (IDS, colour - 1)}, label="J − H", threshold=1.5))
    assert "7 of 40 above 1.5 mag" in said
    assert "0 of 40 above 1.5 mag" in said
    assert "Field 1" in said
    assert "south" in said


def test_without_a_threshold_a_panel_counts_its_objects():
    said = words(colour_by_id({"1": (IDS, IDS / 50)}, label="J − H", threshold=None))
    assert "50 objects" in said


def test_a_value_far_from_all_others_is_counted_and_does_not_flatten_the_panel():
    ids = np.arange(5000)
    colour = np.random.default_rng(3).normal(0, 0.1, 5000)
    colour[17] = 1e6
    figure = colour_by_id({"1": (ids, colour)}, label="J − H", threshold=0.5)
    assert "1 of 5,000 above 0.5 mag; 1 outside" in words(figure)
    assert figure.axes[0].get_ylim()[1] < 2


def test_all_panels_share_the_vertical_scale():
    fields = {str(number): (IDS, IDS * number / 50) for number in range(1, 8)}
    figure = colour_by_id(fields, label="J − H", threshold=2)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert sum(axes.get_ylabel() != "" for axes in figure.axes) == 3  # once a row


@pytest.mark.parametrize("theme", THEMES)
def test_a_field_without_values_shows_the_sentence_and_the_axis_stands_at_the_next_field(theme):
    fields = {"1": (IDS, NAN, NAN), "2": (IDS, 0.01 + IDS / 50, NAN)}
    figure = draw(deviation_by_id(fields, label="Deviation", threshold=0.5, theme=theme))
    said = words(figure)
    assert said.count(UNDEFINED) == 3
    assert "25 of 50 above 0.5" in said
    [labelled] = [axes for axes in figure.axes if axes.get_ylabel()]
    assert labelled.axison
    assert any(tick.label1.get_visible() for tick in labelled.yaxis.get_major_ticks())


def test_raw_and_calibrated_deviations_are_counted_apart():
    raw, calibrated = np.full(50, 3.0), np.full(50, 1.0)
    calibrated[:4] = 9.0
    said = words(deviation_by_id({"1": (IDS, raw, calibrated)}, label="Deviation", threshold=2.0, unit="mag"))
    assert said.index("50 of 50 above 2 mag") < said.index("4 of 50 above 2 mag")
    assert "Field 1, raw" in said
    assert "Field 1, after zero-point" in said


def test_a_deviation_of_zero_is_said_because_a_logarithm_cannot_show_it():
    raw = np.where(IDS < 5, 0.0, 1.0)
    said = words(deviation_by_id({"1": (IDS, raw, np.zeros(50))}, label="Deviation", threshold=2.0))
    assert "0 of 45 above 2; 5 at 0 not drawn" in said
    assert "all at 0" in said


def test_the_sentence_for_undefined_deviations_can_be_chosen():
    said = words(draw(deviation_by_id({"1": (IDS, NAN, NAN)}, label="Deviation", threshold=1.0, undefined="no second night")))
    assert said.count("no second night") == 2


@pytest.mark.parametrize("theme", THEMES)
def test_nothing_to_show_is_said_in_a_sentence(theme):
    assert words(colour_by_id({}, label="J − H", threshold=1.0, theme=theme)) == ["no field to show"]
    assert words(deviation_by_id({}, label="Deviation", threshold=1.0, theme=theme)) == ["no field to show"]
    assert "no finite value" in words(draw(colour_by_id({"1": (IDS, NAN)}, label="J − H", threshold=1.0, theme=theme)))
    assert words(magnitudes(np.full((4, 2), np.nan), ["J", "H"], theme=theme)) == ["no star is measured in these bands"]
    assert words(colour_colour(NAN, IDS, labels=("x", "y"), theme=theme)) == ["no star has both colours"]
    assert words(sky_map([], [], [], theme=theme)) == ["no leaf to show"]


def test_magnitudes_have_bright_up_and_the_median_of_each_band():
    values = np.random.default_rng(5).normal((17, 16, 15), 0.5, (400, 3))
    values[:100, 1] = np.nan
    figure = magnitudes(values, ["Z", "J", "Ks"])
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top
    said = words(figure)
    assert "400 objects" in said
    assert f"300\nmedian {np.nanmedian(values[:, 1]):.2f}" in said
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["Z", "J", "Ks"]


@pytest.mark.parametrize(
    "values", [np.full((3, 1), 15.0), np.array([[15.0, np.nan], [np.nan, 14.0]]), np.array([[15.0, np.inf]])]
)
def test_few_stars_or_bands_can_be_drawn(values):
    draw(magnitudes(values, ["J", "H"][: values.shape[1]]))


def test_a_line_of_a_star_breaks_at_a_band_where_it_is_not_measured():
    figure = magnitudes(np.array([[15.0, np.nan, 14.0]]), ["J", "H", "Ks"])
    shaded = np.ma.filled(figure.axes[0].collections[0].get_array(), 0).sum(axis=0)
    assert shaded[0] == shaded[-1] == 1
    assert shaded[shaded.size // 2] == 0


def test_colour_colour_counts_every_star_once_in_the_frame_or_outside_it():
    random = np.random.default_rng(9)
    x, y = random.normal(size=5000), random.normal(size=5000)
    x[:10], y[10] = np.nan, 1e5
    figure = colour_colour(x, y, labels=("H − Ks [mag]", "J − H [mag]"))
    outside = 4990 - int(figure.axes[0].collections[0].get_array().sum())
    said = words(figure)
    assert "4,990 objects" in said
    assert f"{outside} outside the frame" in said
    assert 0 < outside < 20
    assert figure.axes[0].get_xlabel() == "H − Ks [mag]"


def test_the_accounting_bar_says_every_count():
    said = words(accounting(1_000_000, 999_990, 10, 2, 18))
    assert said == ["1,000,000 rows read", "18 files, 2 quarantined", "stored 999,990 (> 99.99 %)", "rejected 10 (< 0.01 %)"]


@pytest.mark.parametrize(("stored", "missing"), [(90, "unaccounted 7 (7 %)"), (100, "unaccounted -3 (-3 %)")])
def test_rows_that_do_not_balance_are_shown(stored, missing):
    assert missing in words(accounting(100, stored, 3, 0, 1))


def test_a_run_without_rows_has_a_bar():
    assert "stored 0" in words(draw(accounting(0, 0, 0, 1, 1)))


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("ra", "dec", "radius"), [(0, 10, 8), (359.9, -40, 5), (120, 89, 10), (10, -90, 12), (200, -80, 9)])
def test_a_map_across_ra_0_or_at_a_pole_is_finite_and_compact(ra, dec, radius, theme):
    cap = leaves(ra, dec, radius, 4)
    figure = sky_map(cap, range(len(cap)), [n * 3 // len(cap) for n in range(len(cap))], theme=theme)
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    draw(figure)
    assert 2 * radius * 0.8 < left - right < 2 * radius + 16  # right ascension grows to the left
    assert 2 * radius * 0.8 < top - bottom < 2 * radius + 16
    assert np.isfinite(np.concatenate(polygons(figure))).all()
    assert {"0", "1", "2"} <= set(words(figure))


def test_a_map_keeps_areas_and_shapes_of_a_small_footprint():
    pixel = Pixel(6, int(to_pixels(np.array([10.0]), np.array([60.0]), 6)[0]))
    figure = sky_map([outline(pixel)], [1], [0])
    [drawn] = polygons(figure)
    x, y = drawn[:-1].T
    area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    assert area == pytest.approx(41252.96 / (12 * 4**6), rel=2e-3)
    assert figure.axes[0].get_aspect() == 1.0


def test_ticks_of_a_map_are_where_they_say():
    cap = leaves(0, 0, 5, 5)
    axes = sky_map(cap, [1] * len(cap), [0] * len(cap)).axes[0]
    right_ascensions = {label.get_text(): tick for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    assert right_ascensions["358"] - right_ascensions["2"] == pytest.approx(-4, abs=0.15)  # on a plane through RA 0


def test_a_wide_footprint_is_a_mollweide_map_inside_its_ellipse():
    cap = leaves(0, 0, 181, 2)
    figure = sky_map(cap, [5] * len(cap), [0] * len(cap))
    assert figure.axes[0].get_xlim() == (188, -188)
    area = 0.0
    for x, y in (polygon[:-1].T for polygon in polygons(figure)):
        area += (
            abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
            / 2
            * (np.abs(x.mean()) < 180 * np.sqrt(1 - (y.mean() / 90) ** 2))
        )
    assert area == pytest.approx(np.pi * 180 * 90, rel=0.08)  # leaves over the edge are drawn on both sides
    draw(figure)


def test_borders_run_between_partitions_and_not_between_leaves_of_one():
    pixels = [Pixel(8, 4 * 4096 + n) for n in range(16)]
    outlines = [outline(pixel) for pixel in pixels]
    one, two = (borders(sky_map(outlines, [1] * 16, [n // 8 * split for n in range(16)])) for split in (0, 1))
    assert len(one) == 16 * 8  # the outer edge of four by four leaves, eight pieces to an edge
    assert len(two) == 16 * 8 + 2 * 4 * 8  # and the four edges between the halves, from both sides


def test_leaves_of_different_orders_in_one_partition_have_no_border_between_them():
    mixed = [Pixel(7, 4096), *(Pixel(8, 4 * 4097 + n) for n in range(4))]
    found = borders(sky_map([outline(pixel) for pixel in mixed], [1] * 5, [0] * 5))
    assert len(found) == 3 * 8 + 6 * 8


def test_a_map_shades_leaves_by_their_rows():
    cap = leaves(40, 20, 6, 4)
    figure = sky_map(cap, range(1, len(cap) + 1), [0] * len(cap))
    [shaded] = [item for item in figure.axes[0].collections if isinstance(item, PolyCollection)]
    draw(figure)
    levels = [lightness(colour[:3]) for colour in shaded.get_facecolors()]
    assert all(fewer > more for fewer, more in pairwise(levels))


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_the_paper(theme):
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in (theme.ink, theme.muted, theme.accent, theme.alert):
        pair = sorted([luminance(colour), luminance(theme.paper)])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4.5


def test_both_themes_set_every_colour_and_go_from_paper_to_ink():
    assert {field.name for field in fields_of(LIGHT)} >= {"name", "ink", "muted", "paper", "accent", "cmap"}
    for theme, sign in ((LIGHT, 1), (DARK, -1)):
        assert all(sign * (lightness(few) - lightness(many)) > 0 for few, many in pairwise(theme.cmap))


def test_figures_are_drawn_on_the_paper_of_their_theme():
    assert to_rgb(accounting(1, 1, 0, 0, 1, theme=DARK).get_facecolor()) == to_rgb(DARK.paper)


@pytest.mark.parametrize("module", [page, plots])
def test_pyplot_and_its_global_state_are_never_imported(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names]
    assert "matplotlib.figure" in imported
    assert not [name for name in imported if name in ("pyplot", "matplotlib.pyplot", "matplotlib", "rcParams")]
