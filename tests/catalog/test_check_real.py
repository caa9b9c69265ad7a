"""`check` says of every real catalogue what is known to be wrong with it, each kind once, and `accept` settles it."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalable.catalog.check import Finding, check
from scalable.survey.description import Survey
from scalable.survey.read import open_survey

EXAMPLES = Path(__file__).parents[2] / "examples"


def describe(folder: Path, source: Path, columns: dict[str, Any], file_format: str = "fits") -> Survey:
    """Describe one file, put beside a description and an index of one row, as a user who trusts the headers would."""
    folder.mkdir(exist_ok=True)
    if source.parent != folder:
        shutil.copyfile(source, folder / source.name)
    (folder / "index.csv").write_text("id,band,mjd\n1,r,51000.5\n")
    description = {
        "survey": "real",
        "root": ".",
        "observations": {"index": "index.csv", "id": "id", "band": "band", "mjd": "mjd"},
        "files": {"format": file_format, "templates": [{"path": source.name}]},
        "bands": ["r"],
        "columns": columns,
    }
    # JSON is YAML.
    (folder / "survey.yaml").write_text(json.dumps(description))
    return open_survey(folder / "survey.yaml")


def roles(object_id: str, ra: str, dec: str, **more: str) -> dict[str, Any]:
    named = {object_id: "object_id", ra: "ra", dec: "dec", **more}
    return {name: {"role": role} for name, role in named.items()}


def vvv(data: Path, folder: Path) -> Survey:
    """The example without what it declares, and with degrees for positions, as the survey's description says."""
    described = yaml.safe_load((EXAMPLES / "vvv" / "survey.yaml").read_text())
    described["columns"] = {name: {"role": rule.get("role", "value")} for name, rule in described["columns"].items()}
    for name in ("Ra", "Dec"):
        described["columns"][name]["unit"] = "deg"
    described |= {"root": str(data / "vvv"), "accept": []}
    (folder / "survey.yaml").write_text(json.dumps(described))
    return open_survey(folder / "survey.yaml")


def des(data: Path, folder: Path) -> Survey:
    bands = {f"MAG_{b}": "mag" for b in "GRIZY"} | {f"MAG_ERR_{b}": "mag_err" for b in "GRIZY"}
    return describe(folder, data / "photoz" / "des_dnf" / "valid.fits", roles("COADD_OBJECT_ID", "RA", "DEC", **bands))


def light_curves(data: Path, folder: Path) -> Survey:
    """Ragged light curves side by side: 483 members of an archive in one table, under their stars' numbers."""
    names = [f"{band}_{kind}" for band in "ugriz" for kind in ("mjd", "mag", "err")]
    with tarfile.open(data / "lightcurves" / "table1.tar.gz") as archive, (folder / "table1.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["star", "ra", "dec", *names])
        for member in archive.getmembers():
            lines = archive.extractfile(member).read().decode().splitlines() if member.name.endswith(".dat") else []
            # A star once: the same object twice in one observation would be a flaw of this table, not of theirs.
            writer.writerows([int(Path(member.name).stem), *line.split()] for line in lines[:1])
    kinds = {"mag": "mag", "err": "mag_err"}
    columns = roles("star", "ra", "dec", **{name: kinds[name[2:]] for name in names if name[2:] in kinds})
    for name, rule in columns.items():
        rule |= {"unit": "deg" if name in ("ra", "dec") else "mag"} if name != "star" else {}
    return describe(folder, folder / "table1.csv", columns, "csv")


def summary(data: Path, folder: Path) -> Survey:
    source = data / "lightcurves" / "RRLyrae.fit"
    return describe(folder, source, roles("__SIG2010_", "RAJ2000", "DEJ2000", **{f"{b}mag": "mag" for b in "ugrizV"}))


def desi(data: Path, folder: Path) -> Survey:
    source = data / "tables" / "zall-pix-iron_10rows.fits"
    return describe(folder, source, roles("TARGETID", "TARGET_RA", "TARGET_DEC", FLUX_R="flux"))


def tess(data: Path, folder: Path) -> Survey:
    """Pixels of one star: it has no position, so its detector offsets stand in for one, in degrees."""
    columns = roles("CADENCENO", "POS_CORR1", "POS_CORR2", FLUX="flux", FLUX_ERR="flux_err")
    columns["POS_CORR1"]["unit"] = columns["POS_CORR2"]["unit"] = "deg"
    return describe(folder, data / "tables" / "tess_gam02_10rows.fits", columns)


def gaia(data: Path, folder: Path) -> Survey:
    columns = roles("source_id", "ra", "dec", g_transit_flux="flux", g_transit_flux_error="flux_err", g_transit_mag="mag")
    return describe(folder, data / "tables" / "gaia_epoch.ecsv", columns, "ecsv")


CASES: dict[str, tuple[Callable[[Path, Path], Survey], dict[str, str]]] = {
    "vvv": (
        vvv,
        {
            "index-file-name": "18 files",
            "unit-spelling": "RunningID (Number as no unit)",
            "angle-range": "the header says RADIANS",
            "float32-coordinates": "Ra in steps",
            "magnitude-unit": "Mag1 (adu)",
            "float-counter": "RunningID",
            "null-meaning": "Mag1 (24 rows)",
            "negative-error": "dMag1 (24 rows",
            "class-between-bands": "of 10000 objects",
        },
    ),
    "des": (
        des,
        {
            "no-unit": "RA, DEC",
            "magnitude-unit": "MAG_G (none)",
            "sentinel": "MAG_G ({below: -90})",
            "negative-error": "MAG_ERR_Y (60 rows, least -96664.1)",
            "path-in-header": "EXTNAME '/home/",
        },
    ),
    "light curves": (light_curves, {"sentinel": "u_mag ({below: -90})"}),
    "summary of light curves": (summary, {}),
    "desi": (desi, {"unit-spelling": "nanomaggy", "nested-column": "COEFF", "float-counter": "COADD_EXPTIME"}),
    "tess": (
        tess,
        {
            "unknown-unit": "BJD - 2457000, days",
            "nested-column": "FLUX",
            # Of the columns that stand in for an id and a position.
            "duplicate-detection": "9 rows",
            "float32-coordinates": "POS_CORR1",
        },
    ),
    "gaia": (gaia, {"nested-column": "g_transit_flux"}),
}
"""What is known of each, and words that the message must hold."""


@pytest.mark.parametrize("name", CASES)
def test_every_known_flaw_is_reported_once_and_no_other(data: Path, tmp_path: Path, name: str) -> None:
    describe_it, expected = CASES[name]
    survey = describe_it(data, tmp_path)
    findings = check(survey).findings
    assert sorted(finding.name for finding in findings) == sorted(expected)
    for finding in findings:
        assert expected[finding.name] in finding.message
        rest = survey.model_copy(update={"accept": (finding.name,)})
        assert sorted(f.name for f in check(rest).findings) == sorted(expected.keys() - {finding.name})


def settled(survey: Survey, finding: Finding) -> Survey:
    """Add the lines of a finding to a survey, as its user would."""
    columns = {name: rule.model_dump(exclude_unset=True) for name, rule in survey.columns.items()}
    for line in finding.settle.split(" (or ")[0].split("; "):
        [(place, value)] = yaml.safe_load(line).items()
        if place == "accept":
            return survey.model_copy(update={"accept": (*survey.accept, *value)})
        _, name, key = place.split(".")
        rule = columns.setdefault(name, {})
        rule[key] = [*rule.get("nulls", ()), *value] if key == "nulls" else value
    changed = survey.model_dump(by_alias=True, exclude_unset=True) | {"columns": columns}
    return Survey.model_validate(changed)


@pytest.mark.parametrize("name", ["vvv", "des", "light curves", "tess"])
def test_the_lines_that_a_check_gives_settle_all_that_it_found(data: Path, tmp_path: Path, name: str) -> None:
    survey = CASES[name][0](data, tmp_path)
    for finding in check(survey).findings:
        survey = settled(survey, finding)
    assert check(survey).findings == ()


def test_a_table_without_ids_and_positions_is_one_of_rows_and_nothing_is_held_against_it(data: Path, tmp_path: Path) -> None:
    survey = describe(tmp_path, data / "photoz" / "sdss_mgs_mlz" / "SDSS_MGS.test", {"zs": {"role": "value"}}, "text")
    assert not survey.has_positions
    assert check(survey).findings == ()


def test_the_example_of_des_has_settled_all_but_the_path_in_the_header(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "des_dnf", tmp_path / "des_dnf")
    shutil.copyfile(data / "photoz" / "des_dnf" / "valid.fits", folder / "valid.fits")
    assert [finding.name for finding in check(open_survey(folder / "survey.yaml")).findings] == ["path-in-header"]
