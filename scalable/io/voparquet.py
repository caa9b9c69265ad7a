"""Meanings of columns from the VOTable header that a VOParquet file carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

VOTABLE_KEY = b"IVOA.VOTable-Parquet.content"


@dataclass
class Meaning:
    """What a FIELD element says about its column."""

    unit: str = ""
    ucd: str = ""
    description: str = ""


@dataclass
class _Fields:
    """Collects the FIELD elements of the first TABLE."""

    found: dict[str, Meaning] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    current: Meaning | None = None
    over: bool = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.path.append(tag.rpartition(":")[2])
        if self.path[-1] == "FIELD" and not self.over:
            self.current = Meaning(attributes.get("unit", ""), attributes.get("ucd", ""))
            self.found.setdefault(attributes.get("name", ""), self.current)

    def end(self, _: str) -> None:
        tag = self.path.pop()
        if tag == "FIELD":
            self.current = None
        self.over = self.over or tag == "TABLE"

    def text(self, text: str) -> None:
        if self.current is not None and self.path[-2:] == ["FIELD", "DESCRIPTION"]:
            self.current.description += text


def _refuse(*_: object) -> NoReturn:
    raise ValueError("it declares a document type or entities, which no VOTable needs and which are not expanded")


def votable_fields(document: bytes) -> dict[str, Meaning]:
    """Return unit, UCD and description of each FIELD by name, of the first TABLE of a VOTable document.

    Raises
    ------
    ValueError
        If the document is no XML, or declares a document type or entities.
    """
    fields = _Fields()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.StartElementHandler = fields.start
    parser.EndElementHandler = fields.end
    parser.CharacterDataHandler = fields.text
    try:
        parser.Parse(document, True)
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"it is no XML: {error}") from error
    for meaning in fields.found.values():
        meaning.description = " ".join(meaning.description.split())
    return fields.found
