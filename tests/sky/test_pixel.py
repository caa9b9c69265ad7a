"""Pixels: their order along the sky, their place in a HATS catalogue, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalable.sky.pixel import MAX_ORDER, Pixel


@st.composite
def pixels(draw: st.DrawFn, max_order: int = MAX_ORDER) -> Pixel:
    order = draw(st.integers(0, max_order))
    return Pixel(order, draw(st.integers(0, 12 * 4**order - 1)))


@given(pixels())
def test_a_pixel_is_the_range_of_its_descendants_at_order_29(pixel: Pixel) -> None:
    assert pixel.start == pixel.index * 4 ** (29 - pixel.order)
    assert pixel.stop - pixel.start == 4 ** (29 - pixel.order)
    assert 0 <= pixel.start < pixel.stop <= 12 * 4**29


@given(pixels(max_order=28))
def test_the_four_children_tile_their_parent_and_come_after_it(parent: Pixel) -> None:
    children = [Pixel(parent.order + 1, 4 * parent.index + i) for i in range(4)]
    assert children[0].start == parent.start
    assert children[-1].stop == parent.stop
    assert all(a.stop == b.start for a, b in zip(children, children[1:], strict=False))
    assert sorted([*reversed(children), parent]) == [parent, *children]


@given(st.lists(pixels(), max_size=20))
def test_disjoint_pixels_sort_along_the_sky_and_a_pixel_before_what_it_contains(some: list[Pixel]) -> None:
    ordered = sorted(some)
    for a, b in zip(ordered, ordered[1:], strict=False):
        assert a.stop <= b.start or (a.start <= b.start and b.stop <= a.stop)


@given(pixels(), pixels())
def test_exactly_one_of_before_same_and_after_holds(a: Pixel, b: Pixel) -> None:
    assert [a < b, a == b, a > b].count(True) == 1
    assert (a <= b) == (not b < a)
    assert (a == b) == ((a.order, a.index) == (b.order, b.index))


@given(pixels())
def test_the_path_of_a_leaf_names_its_pixel(pixel: Pixel) -> None:
    assert Pixel.from_hats_path(pixel.hats_path) == pixel
    assert Pixel.from_hats_path(f"/data/survey/{pixel.hats_path}") == pixel


@pytest.mark.parametrize(("index", "folder"), [(0, 0), (9_999, 0), (10_000, 10_000), (123_456, 120_000), (3_145_727, 3_140_000)])
def test_leaves_lie_in_folders_of_ten_thousand(index: int, folder: int) -> None:
    assert Pixel(9, index).hats_path == f"dataset/Norder=9/Dir={folder}/Npix={index}.parquet"


@pytest.mark.parametrize("path", ["", "dataset/_metadata", "Norder=3/Npix=4.parquet", "Norder=x/Dir=0/Npix=1.parquet"])
def test_a_path_that_is_no_leaf_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="names no HATS leaf"):
        Pixel.from_hats_path(path)


@pytest.mark.parametrize(("order", "index"), [(-1, 0), (30, 0), (0, -1), (0, 12), (29, 12 * 4**29)])
def test_what_is_no_pixel_is_refused(order: int, index: int) -> None:
    with pytest.raises(ValueError, match=f"no HEALPix pixel of order {order} and index {index}"):
        Pixel(order, index)


def test_a_pixel_is_a_value() -> None:
    pixel = Pixel(5, 17)
    assert str(pixel) == "order 5 pixel 17"
    assert pickle.loads(pickle.dumps(pixel)) == pixel
    assert {pixel, Pixel(5, 17), Pixel(4, 17)} == {pixel, Pixel(4, 17)}
    with pytest.raises(FrozenInstanceError):
        pixel.order = 6  # type: ignore[misc]
