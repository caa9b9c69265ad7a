import base64
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from scalable.report.page import Section, write_page
from scalable.report.plots import accounting, colour_by_id
from scalable.report.style import DARK, LIGHT


def bar(theme):
    return accounting(100, 98, 2, 0, 3, theme=theme)


def page(tmp_path, *sections, name="page.html", title="A run", subtitle="of a survey", summary=None):
    path = tmp_path / name
    write_page(path, title=title, subtitle=subtitle, sections=sections, summary=summary or {})
    return path.read_text(encoding="utf-8")


def cells(text):
    return re.findall(r"<td[^>]*>(.*?)</td>", text)


class Balance(HTMLParser):
    """Fails at an element that is not closed where it should be; keeps tags and attributes."""

    VOID = ("meta", "img", "source")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    return parser


def everything():
    ids = np.arange(30)
    unit = pa.schema([pa.field("ra", pa.float64(), metadata={b"unit": b"deg", b"description": b"Right <ascension>"})])
    return [
        Section("Bar", "One.\n\nTwo.", figure=bar, caption="Rows & files"),
        Section("Colour", figure=lambda theme: colour_by_id({"1": (ids, ids / 30)}, label="J − H", threshold=0.5, theme=theme)),
        Section("Query", code="SELECT 1 < 2", table=pa.table({"ra": [270.25, None]}, schema=unit), caption="Rows"),
    ]


def test_equal_input_gives_equal_bytes(tmp_path):
    first, second = (page(tmp_path, *everything(), name=name, summary={"Rows": "100"}) for name in ("a.html", "b.html"))
    assert first == second


def test_the_page_needs_no_network_and_runs_no_script(tmp_path):
    text = page(tmp_path, *everything(), summary={"Rows": "100"})
    found = parsed(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    loaded = [value for name, value in found.attributes if name in ("src", "srcset", "poster", "data")]
    assert loaded
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert all(value.startswith("#") for name, value in found.attributes if name == "href")
    assert not re.search(r"https?://|@import|url\(", text)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in found.attributes


def test_every_text_is_escaped(tmp_path):
    evil = "<script>alert('1')</script>\"&"
    table = pa.table(
        [pa.array([evil])], schema=pa.schema([pa.field(evil, pa.string(), metadata={"unit": evil, "description": evil})])
    )
    section = Section(evil, evil, figure=bar, table=table, caption=evil, code=evil)
    text = page(tmp_path, section, title=evil, subtitle=evil, summary={evil: evil})
    assert "script" not in parsed(text).tags
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 12


def test_a_figure_is_drawn_once_for_each_theme_and_follows_the_reader(tmp_path):
    themes = []

    def figure(theme):
        themes.append(theme)
        return bar(theme)

    text = page(tmp_path, Section("Bar", figure=figure, caption="Rows read"))
    assert themes == [LIGHT, DARK]
    assert "prefers-color-scheme: dark" in text
    light, dark = (re.search(rf'{name}="data:image/png;base64,([^"]+)"', text)[1] for name in ("src", "srcset"))
    assert light != dark
    assert base64.b64decode(light).startswith(b"\x89PNG")
    assert b"Software" not in base64.b64decode(light)
    assert ("alt", "Bar: Rows read") in parsed(text).attributes
    for theme in (LIGHT, DARK):
        assert f"--paper: {theme.paper}" in text


def test_a_null_is_a_dash_that_says_so_and_a_nan_is_no_null(tmp_path):
    table = pa.table({"x": pa.array([1.5, None, float("nan")]), "name": pa.array([None, "a", ""])})
    found = cells(page(tmp_path, Section("T", table=table)))
    dash = '<span class="null" title="null">–</span>'
    assert found == ["1.5", dash, dash, "a", "nan", ""]


def test_a_long_table_says_how_many_rows_it_does_not_show(tmp_path):
    table = pa.table({"x": list(range(12_345))})
    text = page(tmp_path, Section("T", table=table, max_rows=20))
    assert len(cells(text)) == 20
    assert "20 of 12,345 rows shown; 12,325 not shown." in text
    assert "not shown" not in page(tmp_path, Section("T", table=table.slice(0, 20), max_rows=20))


def test_numbers_stand_right_with_the_same_decimals_and_the_unit_in_the_head(tmp_path):
    schema = pa.schema([pa.field("ra", pa.float64(), metadata={"unit": "deg"}), pa.field("field", pa.string())])
    text = page(tmp_path, Section("T", table=pa.table([[270.25, 3.0], ["a", "b"]], schema=schema)))
    assert '<th scope="col" class=n>ra<span class="unit">[deg]</span></th>' in text
    assert '<th scope="col">field</th>' in text
    assert re.findall(r'<td class="n">(.*?)</td>', text) == ["270.25", "3.00"]


@pytest.mark.parametrize(
    ("values", "written"),
    [
        (pa.array([57267.1671072, 57257.0504323]), ["57267.1671", "57257.0504"]),
        (pa.array([15.328741073608398, 9.5], pa.float32()), ["15.3287", "9.5000"]),
        (pa.array([40.0, 48.0]), ["40", "48"]),
        (pa.array([1e-17, 2.5]), ["1e-17", "2.5"]),
        (pa.array([0.0, float("inf")]), ["0", "inf"]),
        (pa.array([2017, 180_000, -12_345]), ["2017", "180,000", "-12,345"]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.array([], pa.float64()), []),
        (pa.array([None, None], pa.float64()), ['<span class="null" title="null">–</span>'] * 2),
    ],
)
def test_a_number_is_written_as_long_as_its_column_needs(tmp_path, values, written):
    assert cells(page(tmp_path, Section("T", table=pa.table({"x": values})))) == written


def test_an_identifier_has_no_separators(tmp_path):
    assert cells(page(tmp_path, Section("T", table=pa.table({"object_id": [1_234_567]})))) == ["1234567"]


def test_contents_lead_to_every_section_and_the_summary_stands_on_top(tmp_path):
    text = page(tmp_path, Section("Sky"), Section("Sky"), Section("Query"), summary={"Rows": "180,000"})
    links, ids = re.findall(r'href="#(\w+)"', text), re.findall(r'<section id="(\w+)"', text)
    assert links == ids
    assert len(set(ids)) == 3
    assert text.index("<dt>Rows</dt><dd>180,000</dd>") < text.index("<nav") < text.index("<section")


def test_parts_that_are_not_given_leave_no_trace(tmp_path):
    tags = parsed(page(tmp_path, Section("Only a heading"))).tags
    assert not {"figure", "pre", "table", "img", "dl", "figcaption"} & set(tags)
    assert "nav" not in parsed(page(tmp_path)).tags


def test_paragraphs_and_code_keep_their_shape(tmp_path):
    text = page(tmp_path, Section("Q", "One.\n\nTwo.", code="SELECT *\n  FROM t\n WHERE a < 1"))
    assert "<p>One.</p>\n<p>Two.</p>" in text
    assert "<code>SELECT *\n  FROM t\n WHERE a &lt; 1</code>" in text


def test_a_failing_figure_leaves_the_page_that_was_there(tmp_path):
    before = page(tmp_path, Section("Good", figure=bar))

    def bad(theme):
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        page(tmp_path, Section("Bad", figure=bad))
    assert (tmp_path / "page.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
