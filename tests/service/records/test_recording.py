"""Every answer has its record, in each kind of database; what cannot be recorded is not answered."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from models.detector import Detector
from service.app import create_app
from service.records.tables import metadata
from service.settings import SettingsError, load_settings
from tests.service.conftest import Serve
from tests.service.records.conftest import Recording
from tests.service.records.postgresql import PostgreSQL
from tests.service.records.support import SCORE, metrics, opened, score, send, stored
from tests.service.support import HEIGHT, WIDTH, assert_problem, encode, part, wait_until


def test_an_answer_has_its_record(
    recording: Recording, records: Path, database: dict[str, str], detector: Detector
) -> None:
    data = encode(part(1, defective=True))
    begun = datetime.now(UTC)
    with recording() as client:
        answer = send(client, data, part="P 17, Ω", lot="=L/4").json()
    (record,) = stored(records, database)
    assert record["id"] == UUID(answer["id"])
    assert begun <= record["time"] <= datetime.now(UTC)
    assert record["image_sha256"] == hashlib.sha256(data).hexdigest()
    assert (record["image_width"], record["image_height"]) == (WIDTH, HEIGHT)
    assert (record["part"], record["lot"]) == ("P 17, Ω", "=L/4")
    assert (record["operation"], record["shadow_of"]) == (0, None)
    assert (record["caller"], record["protocol"], record["output"]) == ("anonymous", "plumbline", "score")
    for name in ("category", "version", "image_score", "p_value", "verdict", "pixel_threshold", "regions", "times"):
        assert record[name] == answer[name], name
    assert record["regions"] != []
    assert record["image_threshold"] == answer["threshold"] == detector.operating_point.image_threshold


def test_records_keep_the_order_of_the_answers(recording: Recording, records: Path, database: dict[str, str]) -> None:
    with recording() as client:
        ids = [score(client, seed).json()["id"] for seed in range(5)]
        picture = client.post(
            SCORE.replace("score", "heatmap"), content=encode(part(1)), headers={"Content-Type": "a/b"}
        )
        assert picture.status_code == 415
        body = {"content": encode(part(1)), "headers": {"Content-Type": "image/png"}}
        picture = client.post(SCORE.replace("score", "heatmap"), **body)
    found = stored(records, database)
    assert [str(record["id"]) for record in found] == [*ids, picture.headers["x-plumbline-id"]]
    assert [record["output"] for record in found] == ["score"] * 5 + ["heatmap"]


def test_records_outlive_the_service(recording: Recording, records: Path, database: dict[str, str]) -> None:
    ids = []
    for seed in range(2):
        with recording() as client:
            ids.append(score(client, seed).json()["id"])
    assert [str(record["id"]) for record in stored(records, database)] == ids
    assert sorted(path.name for path in (records / "journal").iterdir()) == [".lock"]


def test_a_full_journal_is_not_answered(serve: Serve, models: Path, records: Path, postgresql: PostgreSQL) -> None:
    """With no database in sight the journal takes what it may, and no more."""
    away = postgresql.create("never_there").replace(str(postgresql.port), "1")
    options: dict[str, Any] = {"records": records, "records_url": away, "journal_bytes": 2**20}
    _fill(records, 2**20 - 100)
    with serve(models, **options) as client:
        refused = score(client)
        assert_problem(refused, 503, "records-unavailable", "journal is full")
        assert refused.headers["retry-after"] == "5"
        after = metrics(client)
        assert after['plumbline_record_failures_total{at="journal"}'] == 1
        assert after["plumbline_records_database_up"] == 0
        assert not any(name.startswith("plumbline_verdicts_total") for name in after)  # it cost no work
    with serve(models, **options, records_required=False) as client:
        assert score(client).status_code == 200
        assert metrics(client)['plumbline_record_failures_total{at="journal"}'] == 1


def test_lines_that_are_no_records_are_set_aside(recording: Recording, records: Path, database: dict[str, str]) -> None:
    _fill(records, 1000)
    with recording() as client:
        answer = score(client).json()
        wait_until(lambda: metrics(client)["plumbline_records_journal_depth"] == 0)
        assert metrics(client)['plumbline_record_failures_total{at="database"}'] == 1
    assert [str(record["id"]) for record in stored(records, database)] == [answer["id"]]
    assert (records / "journal" / "damaged.jsonl").read_text() == "x" * 999 + "\n"


def test_old_records_are_deleted(recording: Recording, records: Path, database: dict[str, str]) -> None:
    with recording() as client:
        ids = [score(client, seed).json()["id"] for seed in range(2)]
    with opened(records, database) as there, there.begin() as connection:
        long_ago = (datetime.now(UTC) - timedelta(days=8)).replace(tzinfo=None).isoformat(sep=" ")
        key = UUID(ids[0]).hex
        connection.execute(text(f"UPDATE inspections SET time = '{long_ago}' WHERE id = '{key}'"))
    with recording(keep_records_days=7):
        wait_until(lambda: len(stored(records, database)) == 1)
    assert [str(record["id"]) for record in stored(records, database)] == ids[1:]


def test_many_old_records_are_deleted_some_at_a_time(
    recording: Recording, records: Path, database: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader waits until what was answered is in the database, and so must not wait for all that is too old."""
    monkeypatch.setattr("service.records.database._DELETED_AT_ONCE", 2)
    with recording() as client:
        for seed in range(5):
            score(client, seed)
    with opened(records, database) as there:
        assert there.forget(datetime.now(UTC)) == 2
        with there.begin() as connection:
            moved = (datetime.now(UTC) - timedelta(days=8)).replace(tzinfo=None).isoformat(sep=" ")
            connection.execute(text(f"UPDATE inspections SET time = '{moved}'"))
    with recording(keep_records_days=7):
        wait_until(lambda: not stored(records, database))


def test_a_newer_schema_is_refused(models: Path, records: Path, database: dict[str, str]) -> None:
    settings = load_settings(models=models, records=records, **database)
    create_app(settings).state.service.records.close()
    with opened(records, database) as there, there.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for _ in range(2):  # the refusal lets go of the folder
        with pytest.raises(SettingsError, match=r"schema 9999.*knows 0001.*newer Plumbline"):
            create_app(settings)


def test_the_tables_are_as_the_migrations_leave_them(records: Path, database: dict[str, str]) -> None:
    records.mkdir()
    with opened(records, database) as there:
        there.migrate()
        there.migrate()
        with there.begin() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_two_services_do_not_share_a_folder(models: Path, records: Path) -> None:
    settings = load_settings(models=models, records=records)
    first = create_app(settings)
    with pytest.raises(SettingsError, match=r"in use by another process.*--records"):
        create_app(settings)
    first.state.service.records.close()


def test_a_folder_that_cannot_be_written(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot be recorded in .*PLUMBLINE_RECORDS.*none"):
        create_app(load_settings(models=models, records=tmp_path / "file"))


def test_where_records_go(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    assert load_settings(models=models).records_folder == tmp_path / "records"
    assert load_settings(models=models, records=tmp_path / "elsewhere").records_folder == tmp_path / "elsewhere"
    assert load_settings(models=models, records="none").records_folder is None
    with pytest.raises(SettingsError, match="PLUMBLINE_RECORDS_URL"):
        load_settings(models=models, records="none", records_url="postgresql://x/y")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [("mysql://x/y", "'mysql'"), ("nonsense", "no database URL"), ("oracle:secret", "no database")],
)
def test_urls_that_are_no_database_of_ours(models: Path, records: Path, url: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        create_app(load_settings(models=models, records=records, records_url=url))
    assert "secret" not in str(caught.value)


def test_postgresql_without_its_driver_says_what_to_install(models: Path, records: Path) -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from service.records.database import Database, database_url\n"
        "Database(database_url('postgresql://x/y'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'plumbline[postgresql]'" in done.stderr.splitlines()[-1]


def test_recording_nothing(serve: Serve, models: Path) -> None:
    before = sorted(models.parent.iterdir())
    with serve(models) as client:
        assert score(client).status_code == 200
    assert sorted(models.parent.iterdir()) == before


def _fill(records: Path, size: int) -> None:
    """A line of a journal that no service wrote."""
    (records / "journal").mkdir(parents=True)
    (records / "journal" / "000000000001.jsonl").write_text("x" * (size - 1) + "\n")
