"""What Alembic runs: every step in the transaction that ``Database.migrate`` began."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
