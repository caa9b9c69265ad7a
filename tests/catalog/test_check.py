"""`check` finds what contradicts itself, each kind once, and says which line settles it; a clean survey gives nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from surveys import Observation, detections, write_survey

from scalable.catalog.check import Finding, check
from scalable.errors import SurveyError
from scalable.survey.description import Survey
from scalable.survey.read import open_survey

EXAMPLE = Path(__file__).parents[2] / "examples" / "vvv" / "survey.yaml"
N = 40


def found(survey: Survey) -> dict[str, Finding]:
    findings = check(survey).findings
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names)), "each kind is reported once"
    return {finding.name: finding for finding in findings}


def survey(folder: Path, *tables: pa.Table, **options: object) -> Survey:
    files = [Observation(n, "J" if n % 2 else "Ks", float(n), table) for n, table in enumerate(tables, start=1)]
    return write_survey(folder, files, **options)


def plain(**columns: object) -> pa.Table:
    rng = np.random.default_rng(1)
    return detections(np.arange(N), rng.uniform(20, 30, N), rng.uniform(-5, 5, N), **columns)


def test_a_clean_survey_gives_no_finding(tmp_path: Path) -> None:
    flux = {"role": "flux", "unit": "adu"}
    values = pa.array(np.linspace(10.5, 20.3, N).astype(np.float32))
    assert found(survey(tmp_path, plain(Flux=values), plain(Flux=values), columns={"Flux": flux})) == {}


@pytest.mark.parametrize(
    ("name", "column", "rule", "settle"),
    [
        ("magnitude-unit", np.linspace(10.1, 20.2, N), {"role": "mag", "unit": "adu"}, "columns.Extra.unit: mag"),
        ("no-unit", np.linspace(10.1, 20.2, N), {"role": "flux"}, "columns.Extra.unit: adu"),
        (
            "negative-error",
            np.linspace(-1.1, 20.2, N),
            {"role": "mag_err", "unit": "mag"},
            "columns.Extra.nulls: [{at_most: 0, state: rejected}]",
        ),
        (
            "sentinel",
            np.where(np.arange(N) < 5, 99.0, 15.5),
            {"role": "mag", "unit": "mag"},
            "columns.Extra.nulls: [{above: 90}]",
        ),
        ("float-counter", np.arange(N, dtype=np.float64), {}, "accept: [float-counter]"),
    ],
)
def test_a_contradiction_is_found_and_its_line_settles_it(
    tmp_path: Path, name: str, column: np.ndarray, rule: dict[str, object], settle: str
) -> None:
    extra = pa.array(column.astype(np.float32))
    rules = {"Flux": {"role": "flux", "unit": "adu"}, "Extra": rule}
    described = survey(tmp_path, plain(Extra=extra), columns=rules)
    findings = found(described)
    assert set(findings) == {name}
    assert findings[name].settle.startswith(settle)
    assert "Extra" in findings[name].message
    assert found(described.model_copy(update={"accept": (name,)})) == {}
    if settle.startswith("columns.Extra"):
        settled = {**rule, **yaml.safe_load(settle.removeprefix("columns.Extra."))}
        again = survey(tmp_path / "settled", plain(Extra=extra), columns={**rules, "Extra": settled})
        assert found(again) == {}


def test_radians_that_are_called_degrees_are_found(tmp_path: Path) -> None:
    table = detections(np.arange(N), np.linspace(4.69, 4.71, N), np.linspace(-0.52, -0.53, N), unit="rad")
    described = survey(tmp_path, table, columns={"Ra": {"role": "ra", "unit": "deg"}, "Dec": {"role": "dec", "unit": "deg"}})
    assert found(described)["angle-range"].settle.endswith("unit: rad")


def test_the_same_object_twice_in_a_file_is_found(tmp_path: Path) -> None:
    table = pa.concat_tables([plain(), plain().slice(0, 3)])
    assert "3 rows" in found(survey(tmp_path, table))["duplicate-detection"].message


def test_the_real_sample_gives_one_line_per_kind(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALABLE_DATA", str(data))
    findings = found(open_survey(EXAMPLE))
    assert set(findings) == {"float32-coordinates", "float-counter", "negative-error", "class-between-bands"}
    assert "0.098 arcsec" in findings["float32-coordinates"].message


def test_a_quality_cut_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    described = survey(tmp_path, plain())
    with pytest.raises(SurveyError, match=r"quality.good: no column 'Flx'"):
        check(described.model_copy(update={"quality": {"good": "Flx > 5"}}))
