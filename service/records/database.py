"""The records database: SQLite beside the journal, or PostgreSQL by its URL. All of it blocks, so never on the loop."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, delete, event, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.records.record import Record
from service.records.tables import inspections

SQLITE_FILE = "records.sqlite"

_MIGRATIONS = Path(__file__).with_name("migrations")
_CONNECTIONS = 5
_WAIT_S = 5
_DELETED_AT_ONCE = 1000

# PostgreSQL: a server that answers nobody is noticed within seconds, and no statement runs for ever.
_POSTGRESQL = {
    "connect_timeout": _WAIT_S,
    "options": "-c statement_timeout=30000 -c lock_timeout=10000",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}
_MIGRATION_LOCK = 0x706C756D62  # any number that nobody else uses in that database


class DatabaseUnavailable(Exception):
    """The database cannot be used now; the message says why."""


class DatabaseError(Exception):
    """The database cannot be used as it is set; the message is a sentence for the operator."""


class Database:
    """The database of one service process.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://...``.

    Raises:
        DatabaseError: it is neither, or the driver is not installed.
    """

    def __init__(self, url: URL) -> None:
        self._engine = _engine(url)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the schema to what this build needs.

        Raises:
            DatabaseError: the schema is of a newer build.
            DatabaseUnavailable: see there.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        with self.begin() as connection:
            if connection.dialect.name == "postgresql":  # several services may start at once
                connection.execute(text("SET LOCAL statement_timeout = 0"))  # indexes of many records take long
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            found = set(MigrationContext.configure(connection).get_current_heads())
            if newer := found - known:
                raise DatabaseError(
                    f"the records database has the schema {', '.join(sorted(newer))}, and this build knows "
                    f"{', '.join(sorted(known))}: a newer Plumbline wrote it; use that one, or name another database "
                    "(PLUMBLINE_RECORDS, PLUMBLINE_RECORDS_URL)"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction.

        Raises:
            DatabaseUnavailable: there is no connection, or it broke, or the disk is full, or a table is not there.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DataError, IntegrityError):  # of what was sent to it, so trying again would not help
            raise
        except (DBAPIError, PoolTimeout) as error:
            raise DatabaseUnavailable(_reason(error)) from error

    def insert(self, records: Sequence[Record]) -> list[tuple[Record, str]]:
        """Add records in their order; one that is there already stays as it is.

        Returns:
            Those that the database refused, and why.

        Raises:
            DatabaseUnavailable: see there; some may be added.
        """
        try:
            self._insert(records)
        except SQLAlchemyError as error:  # one of them, so each for itself
            if len(records) == 1:
                return [(records[0], _reason(error))]
            return [refused for record in records for refused in self.insert([record])]
        return []

    def forget(self, before: datetime) -> int:
        """Delete the oldest records of inspections before a time, and their reviews: some, for all may take long.

        Returns:
            How many were deleted; 0 where none is left.

        Raises:
            DatabaseUnavailable: see there.
        """
        columns = inspections.c
        old = select(columns.sequence).where(columns.time < before).order_by(columns.time).limit(_DELETED_AT_ONCE)
        with self.begin() as connection:
            return connection.execute(delete(inspections).where(columns.sequence.in_(old))).rowcount

    def _insert(self, records: Sequence[Record]) -> None:
        rows = [record.model_dump() for record in records]
        with self.begin() as connection:
            dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
            connection.execute(dialect.insert(inspections).on_conflict_do_nothing(index_elements=["id"]), rows)


def database_in(folder: Path, url: str | None) -> Database:
    """The database of a folder of records: at ``url``, or SQLite in the folder where that is None.

    Raises:
        DatabaseError: as ``database_url`` and ``Database``.
    """
    return Database(URL.create("sqlite", database=str(folder / SQLITE_FILE)) if url is None else database_url(url))


def database_url(text: str) -> URL:
    """The URL in a text.

    Raises:
        DatabaseError: it is none.
    """
    try:
        return make_url(text)
    except (ArgumentError, ValueError) as error:  # without the text, which may hold a password
        raise DatabaseError("it is no database URL; write postgresql://USER:PASSWORD@HOST/DATABASE") from error


def _engine(url: URL) -> Engine:
    kind = url.get_backend_name()
    if kind == "sqlite":
        engine = create_engine(url, pool_size=_CONNECTIONS, max_overflow=0, pool_timeout=_WAIT_S)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if kind != "postgresql":
        raise DatabaseError(f"{kind!r} is no database that records can be kept in; there is sqlite and postgresql")
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=_WAIT_S,
            pool_pre_ping=True,
            connect_args=_POSTGRESQL,
        )
    except (ImportError, NoSuchModuleError) as error:
        raise DatabaseError("PostgreSQL needs psycopg: pip install 'plumbline[postgresql]'") from error


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # else the driver begins transactions by itself, and none around a migration
    connection.execute(f"PRAGMA busy_timeout = {1000 * _WAIT_S}")
    connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
    connection.execute("PRAGMA synchronous = FULL")  # a committed record outlives a power cut; the journal forgets it
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _reason(error: Exception) -> str:
    """One line, without the statement and its values, which are the sender's."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
