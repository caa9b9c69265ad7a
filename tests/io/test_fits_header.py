"""Cards, and the walk from header to header."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from astropy.io import fits

from scalable.errors import InputError, MissingInputError
from scalable.io.fits_header import data_bytes, open_fits, parse_header


def cards(*lines: str) -> bytes:
    """Return raw header blocks with these cards and END."""
    raw = "".join(line.ljust(80) for line in (*lines, "END")).encode("latin-1")
    return raw.ljust(-(-len(raw) // 2880) * 2880)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'abc     '           / text", "abc"),
        ("'O''Neill''s'", "O'Neill's"),
        ("''", ""),
        ("'  kept'", "  kept"),
        ("'a / b'              / not in the text", "a / b"),
        ("                   T / yes", True),
        ("                   F", False),
        ("                 -42 / whole", -42),
        ("9223372036854775808", 2**63),
        ("                +1.5", 1.5),
        ("             1.25D+3", 1250.0),
        ("               .5e-1", 0.05),
        ("                3E2 / float", 300.0),
        ("               1E999", float("inf")),
        ("                    / undefined", None),
        ("", None),
        ("no quotes            / broken", "no quotes"),
        ("(1.0, 2.0)", "(1.0, 2.0)"),
    ],
)
def test_a_card_has_the_value_that_it_shows(text: str, value: object) -> None:
    found = parse_header(cards(f"KEY     = {text}")).values["KEY"]
    assert found == value
    assert type(found) is type(value)


def test_a_comment_is_kept_beside_its_value() -> None:
    header = parse_header(cards("A       = 'x / y'  / about it", "B       =    1"))
    assert header.comments == {"A": "about it"}


def test_commentary_blank_and_foreign_cards_are_passed_over() -> None:
    raw = cards("COMMENT = not a value", "HISTORY   = 3", "        = 'blank keyword'", "HIERARCH ESO X = 5", "", "A       = 1")
    assert parse_header(raw).values == {"A": 1}


def test_the_first_of_repeated_keywords_wins() -> None:
    raw = cards("A       = 'first&'", "CONTINUE  ' long'", "A       = 'second&'", "CONTINUE  ' thing'", "B       = 2")
    assert parse_header(raw).values == {"A": "first long", "B": 2}


def test_a_long_string_reads_as_astropy_wrote_it(tmp_path: Path) -> None:
    text = "it's a long / string " * 20
    hdu = fits.PrimaryHDU()
    hdu.header["LONGSTR"] = (text, "with a comment")
    hdu.writeto(tmp_path / "a.fits")
    header = parse_header((tmp_path / "a.fits").read_bytes())
    assert header.values["LONGSTR"] == text.rstrip()
    assert header.comments["LONGSTR"] == "with a comment"


def test_an_ampersand_without_continuation_is_text() -> None:
    assert parse_header(cards("A       = 'this & that &'", "B       = 1")).values == {"A": "this & that &", "B": 1}


def test_nothing_behind_end_is_read() -> None:
    assert parse_header(cards("A       = 1") + cards("B       = 1")).values == {"A": 1}


def test_every_card_of_real_headers_reads_as_astropy_reads_it(data: Path) -> None:
    paths = sorted((data / "images").rglob("*.fits")) + sorted((data / "tables").glob("*.fits"))
    assert len(paths) > 20
    for path in paths:
        with open_fits(str(path)) as file, fits.open(path, disable_image_compression=True) as expected:
            for number, hdu in enumerate(expected):
                raw, data_at = file.find(number)
                assert data_at == hdu.fileinfo()["datLoc"]
                values = parse_header(raw).values
                seen = set()
                for card in fits.Header.fromstring(raw.decode("latin-1")).cards:
                    if card.keyword in ("COMMENT", "HISTORY", "") or len(card.keyword) > 8 or card.keyword in seen:
                        continue
                    seen.add(card.keyword)
                    undefined = isinstance(card.value, fits.card.Undefined)
                    assert values[card.keyword] == (None if undefined else card.value), (path, card)


def test_the_size_of_data_follows_the_standard() -> None:
    start = ("SIMPLE  = T", "BITPIX  = -32", "NAXIS   = 2", "NAXIS1  = 10", "NAXIS2  = 3")
    assert data_bytes(cards(*start)) == 120
    assert data_bytes(cards(*start, "PCOUNT  = 5", "GCOUNT  = 2")) == 4 * 2 * 35
    assert data_bytes(cards("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0")) == 0
    groups = (
        "SIMPLE  = T",
        "BITPIX  = 16",
        "NAXIS   = 2",
        "NAXIS1  = 0",
        "NAXIS2  = 3",
        "GROUPS  = T",
        "PCOUNT  = 2",
        "GCOUNT  = 7",
    )
    assert data_bytes(cards(*groups)) == 2 * 7 * 5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["BITPIX  = 9", "NAXIS   = 0"], "HDU 0: BITPIX is 9"),
        (["BITPIX  = 8"], "HDU 0: NAXIS is missing"),
        (["BITPIX  = 8", "NAXIS   = 1000"], "HDU 0: NAXIS is 1000"),
        (["BITPIX  = 8", "NAXIS   = 1", "NAXIS1  = -4"], "HDU 0: NAXIS1 is -4"),
        (["BITPIX  = 8", "NAXIS   = 1", "NAXIS1  = 'x'"], "HDU 0: NAXIS1 is 'x'"),
        (["BITPIX  = 8", "NAXIS   = 1", "NAXIS1  = 99999999999999999999"], "file ends at byte 2880, the data need 1000000"),
    ],
)
def test_a_header_that_cannot_be_is_refused_with_its_keyword(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(cards("SIMPLE  = T", *lines))
    with open_fits(str(path)) as file, pytest.raises(InputError, match=message):
        file.find(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "HDU 0: not a FITS file: the file is empty"),
        (b"RunningID,X,Y\n1,2,3\n", "HDU 0: not a FITS file: it begins with b'RunningI'"),
        (gzip.compress(b"\x1f\x8b\x08\x00rest", mtime=0), "HDU 0: the file is compressed with gzip twice; run gunzip"),
        (b"SIMPLE  = T".ljust(2880), "HDU 0: file ends at byte 2880 inside the header: truncated"),
        (cards("SIMPLE  = T")[:2000], "HDU 0: file ends at byte 2000, the header needs 2880: truncated"),
    ],
)
def test_what_is_no_fits_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with open_fits(str(path)) as file, pytest.raises(InputError, match=message):
        file.find(0)


def test_a_header_of_many_blocks_is_found_to_its_end(tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU()
    for n in range(2000):
        hdu.header[f"K{n}"] = "END     "
    hdu.writeto(tmp_path / "a.fits")
    with open_fits(str(tmp_path / "a.fits")) as file:
        raw, data_at = file.find(0)
    assert data_at == len(raw) == (tmp_path / "a.fits").stat().st_size
    assert parse_header(raw).values["K1999"] == "END"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"none\.fits: no such file"), open_fits(str(tmp_path / "none.fits")):
        pass
    with pytest.raises(InputError, match="not a regular file"), open_fits(str(tmp_path)):
        pass
    with pytest.raises(InputError, match="cannot be opened"), open_fits("a\0b"):
        pass


def test_bytes_that_vanish_while_reading_are_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(bytes(100))
    with open_fits(str(path)) as file:
        path.write_bytes(bytes(40))
        with pytest.raises(InputError, match=r"HDU 3: file ends at byte 40, bytes to 100 are needed"):
            file.read_into(memoryview(bytearray(100)), 0, 3)
