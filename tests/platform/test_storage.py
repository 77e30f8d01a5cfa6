"""Where runs lie: never in a folder that is deleted with the job or the cluster that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.storage import check_writable, lasting, settle
from shoal_core.errors import UserError
from shoal_core.passing import TEMP_DIR, passing


@pytest.fixture(autouse=True)
def _no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in (TEMP_DIR, "SHOAL_CLUSTER", "SHOAL_STORAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Ray's copy of a working directory, under the temporary folder of a local cluster."""
    folder = (
        tmp_path / "shoal-local-x" / "head" / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    )
    folder.mkdir(parents=True)
    return folder


def test_a_relative_storage_is_the_shells_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settle(None, Path("elsewhere/job.yaml")) == str(tmp_path / "runs")
    assert settle("here/runs", Path("job.yaml")) == str(tmp_path / "here" / "runs")
    assert settle(str(tmp_path / "a"), Path("job.yaml")) == str(tmp_path / "a")
    monkeypatch.setenv("SHOAL_STORAGE", str(tmp_path / "shared"))
    assert settle(None, Path("job.yaml")) == str(tmp_path / "shared")
    assert settle("runs", Path("job.yaml")) == str(tmp_path / "runs")


def test_a_job_in_a_clusters_temporary_folder_keeps_its_runs_beside_the_job_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "shoal-local-x"
    monkeypatch.chdir(temporary)
    monkeypatch.setenv(TEMP_DIR, str(temporary / "head"))
    assert settle(None, tmp_path / "job.yaml") == str(tmp_path / "runs")
    with pytest.raises(UserError, match=r"storage: .* lies in the temporary folder of cluster local"):
        settle(str(temporary / "runs"), tmp_path / "job.yaml")


def test_a_job_in_rays_copy_of_its_folder_gets_the_users_own_folder_or_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cache)
    with pytest.raises(UserError, match=r"storage: 'runs' would lie in .*(.|\n)*all nodes share"):
        settle(None, Path("job.yaml"))
    with pytest.raises(UserError, match="lies in Ray's cache of working directories"):
        settle(str(cache / "runs"), Path("job.yaml"))
    monkeypatch.setenv(TEMP_DIR, str(tmp_path / "shoal-local-x" / "head"))
    assert settle(None, Path("job.yaml")) == str(tmp_path / "data" / "shoal" / "runs")


def test_what_passes_is_told_by_its_path_links_followed(tmp_path: Path, cache: Path) -> None:
    assert passing(tmp_path, {}) == ""
    (tmp_path / "link").symlink_to(cache)
    with pytest.raises(UserError, match=r"--out: .* lies in Ray's cache"):
        lasting(tmp_path / "link" / "corpus", "--out")
    assert "Ray session" in passing(Path("/x/session_2026-11-29_18-00-00_123456_7/logs"), {})


def test_a_storage_that_cannot_hold_runs_is_named(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new" / "runs"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is no folder"):
        check_writable(str(tmp_path / "file" / "runs"))
    with pytest.raises(UserError, match=r"/proc/1 cannot be written|/proc cannot be written"):
        check_writable("/proc/1/nothing")


@pytest.mark.parametrize("address", ["s4://bucket/runs", "s3://bucket/runs?colour=red", "file://runs"])
def test_where_an_address_that_is_refused_comes_from_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_STORAGE", address)
    with pytest.raises(UserError, match=r"^SHOAL_STORAGE: "):
        settle(None, Path("job.yaml"))
    with pytest.raises(UserError, match=r"^storage: "):
        settle(address, Path("job.yaml"))
