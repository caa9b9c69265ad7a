"""Surveys and stores on an object store: a real S3 server on loopback, held against the same work on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from catalog.surveys import Observation, detections, fingerprint, write_survey

from scalable.catalog.ingest import find_inputs, ingest
from scalable.errors import InputError, MissingInputError, SurveyError
from scalable.io.remote import states
from scalable.survey import Survey, open_survey

moto = pytest.importorskip("moto.server", reason="needs an S3 server: pip install 'moto[server]'")
pytest.importorskip("s3fs", reason="needs the extra s3")

SECRET = "canary-wJalrXUtnFEMI"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an empty S3 server, to which the environment points."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield s3fs.S3FileSystem(use_listings_cache=False)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)):x}"[:20]
    s3.mkdir(name)
    return name


@pytest.fixture(autouse=True)
def _in_this_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def observations(count: int = 6, *, without: int = -1) -> list[Observation]:
    rng = np.random.default_rng(5)
    ra, dec = rng.uniform(10.0, 12.0, 400), rng.uniform(-1.0, 1.0, 400)
    return [
        Observation(i, "J" if i % 2 else "Ks", 57000.0 + i, None if i == without else detections(np.arange(400), ra, dec))
        for i in range(1, count + 1)
    ]


def moved(survey: Survey, s3: Any, bucket: str, folder: Path) -> Survey:
    """Return the same survey with its files in a bucket."""
    local = Path(survey.root)
    for path in [local / "index.csv", *sorted((local / "tables").glob("*"))]:
        s3.put_file(str(path), f"{bucket}/in/{path.relative_to(local).as_posix()}")
    folder.mkdir()
    text = (local / "survey.yaml").read_text().replace('"root": "."', f'"root": "s3://{bucket}/in/"')
    (folder / "survey.yaml").write_text(text)
    return open_survey(folder / "survey.yaml")


def leaves(version: Path) -> dict[str, str]:
    return {name: digest for name, digest in fingerprint(version).items() if "Npix=" in name}


def test_a_survey_in_a_bucket_gives_the_leaves_that_its_files_on_disk_give(s3: Any, bucket: str, tmp_path: Path) -> None:
    local = write_survey(tmp_path / "local", observations(), leaf_mb=0.02)
    remote = moved(local, s3, bucket, tmp_path / "remote")
    here, there = ingest(local, into=tmp_path / "a"), ingest(remote, into=tmp_path / "b")
    assert len(leaves(here.path)) > 8
    assert leaves(there.path) == leaves(here.path)
    assert there.observations.equals(here.observations)
    assert there.accounting["stored"] == 2400


def test_a_missing_object_is_set_aside_and_the_others_are_stored(s3: Any, bucket: str, tmp_path: Path) -> None:
    remote = moved(write_survey(tmp_path / "local", observations(without=3)), s3, bucket, tmp_path / "remote")
    store = ingest(remote, into=tmp_path / "store")
    assert store.accounting["quarantined"] == 1
    assert store.accounting["stored"] == 2000
    assert "3,tables/3-J.fits,tables/3-J.fits: no such object" in (store.path / "quarantine.csv").read_text()


def test_a_damaged_object_is_named_by_its_address_and_no_copy_is_left(s3: Any, bucket: str, tmp_path: Path) -> None:
    remote = moved(write_survey(tmp_path / "local", observations()), s3, bucket, tmp_path / "remote")
    s3.pipe_file(f"{bucket}/in/tables/2-Ks.fits", s3.cat_file(f"{bucket}/in/tables/2-Ks.fits")[:4000])
    before = set(os.listdir("/tmp")) if os.path.isdir("/tmp") else set()
    store = ingest(remote, into=tmp_path / "store")
    reason = (store.path / "quarantine.csv").read_text()
    assert "2,tables/2-Ks.fits," in reason
    assert "copy" not in reason
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith(".tmp-")]


def test_files_in_a_bucket_are_found_by_a_glob(s3: Any, bucket: str, tmp_path: Path) -> None:
    survey = moved(write_survey(tmp_path / "local", observations()), s3, bucket, tmp_path / "remote")
    for name in ("tables/.hidden.fits", "tables/deep/er/9-J.fits", "tables/notes.txt", "other/7-J.fits"):
        s3.pipe_file(f"{bucket}/in/{name}", b"x")
    known = {"pattern": r"(?P<id>\d+)-(?P<band>\w+)\.", "mjd": {"value": 57000.0}}
    found = {}
    for glob in ("tables/*.fits", "tables/**/*.fits", "**/*-J.fits"):
        text = survey.model_dump(mode="json", by_alias=True) | {"observations": known, "files": {"glob": glob}}
        found[glob] = [source.name for source in find_inputs(Survey.model_validate(text)).sources]
    six = [f"tables/{o.id}-{o.band}.fits" for o in observations()]
    assert found["tables/*.fits"] == six
    assert found["tables/**/*.fits"] == [*six, "tables/deep/er/9-J.fits"]
    assert set(found["**/*-J.fits"]) == {*six[::2], "tables/deep/er/9-J.fits", "other/7-J.fits"}


def test_the_run_is_another_one_when_an_object_changes_and_else_the_same(s3: Any, bucket: str, tmp_path: Path) -> None:
    survey = moved(write_survey(tmp_path / "local", observations()), s3, bucket, tmp_path / "remote")
    first = find_inputs(survey)
    assert find_inputs(survey).run_id == first.run_id
    assert first.sizes == {s.path: (Path(tmp_path) / "local" / s.name).stat().st_size for s in first.sources}
    data = s3.cat_file(f"{bucket}/in/tables/2-Ks.fits")
    s3.pipe_file(f"{bucket}/in/tables/2-Ks.fits", data[:-1] + b"x")
    assert find_inputs(survey).run_id != first.run_id


def test_few_objects_and_many_are_asked_for_alike(s3: Any, bucket: str) -> None:
    urls = [f"s3://{bucket}/a/{number}" for number in range(9)]
    for url in urls[1:]:
        s3.pipe_file(url, url.encode())
    one_by_one = {k: v for url in urls for k, v in states([url]).items()}
    assert states(urls) == one_by_one
    assert list(one_by_one) == urls[1:]


@pytest.mark.parametrize("relative", ["../x.fits", "a/../../x.fits", "%2e%2e/x.fits", "/etc/passwd", "a::file:///etc/passwd"])
def test_nothing_outside_a_remote_root_is_read(relative: str, tmp_path: Path) -> None:
    survey = write_survey(tmp_path, observations(1)).model_copy(update={"root": "s3://bucket/in"})
    with pytest.raises(InputError, match="lies outside the survey's root s3://bucket/in"):
        survey.confined(relative)


@pytest.mark.parametrize(
    ("root", "message"),
    [("s3://key:secret@b/in", "environment"), ("file:///data", "plain path"), ("zip://a::s3://b/c.zip", "without ::")],
)
def test_a_root_with_credentials_or_of_this_machine_is_refused(root: str, message: str, tmp_path: Path) -> None:
    write_survey(tmp_path, observations(1))
    path = tmp_path / "survey.yaml"
    path.write_text(path.read_text().replace('"root": "."', f'"root": "{root}"'))
    with pytest.raises(SurveyError, match=message) as caught:
        open_survey(path)
    assert "secret" not in str(caught.value)


def test_an_index_that_is_not_there_is_named_by_its_address(s3: Any, bucket: str, tmp_path: Path) -> None:
    survey = write_survey(tmp_path, observations(1)).model_copy(update={"root": f"s3://{bucket}/nowhere"})
    with pytest.raises(MissingInputError, match=f"s3://{bucket}/nowhere/index.csv: the observation index is not there"):
        find_inputs(survey)


def test_a_server_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSPEC_HTTP", "{}")
    survey = write_survey(tmp_path, observations(1)).model_copy(update={"root": "http://127.0.0.1:9/in"})
    with pytest.raises(InputError, match="http://127.0.0.1:9/in/index.csv"):
        find_inputs(survey)
