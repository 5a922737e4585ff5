"""An application with an outbox in its own database, by SQLAlchemy."""

from __future__ import annotations

import os

from sqlalchemy import MetaData, create_engine
from sqlalchemy.orm import sessionmaker

from taskbridge import configure
from taskbridge.integrations.sqlalchemy import SessionOutbox, outbox_table
from tests.django.site.post import tasks

__all__ = ["tasks"]

_database = os.environ["SITE_DATABASE"]
_is_server = _database.startswith("postgresql:")

engine = create_engine(
    _database.replace("postgresql:", "postgresql+psycopg:") if _is_server else f"sqlite:///{_database}"
)
sessions = sessionmaker(engine)
table = outbox_table(MetaData())
bridge = configure(os.environ["SITE_URL"], namespace=os.environ["SITE_NAMESPACE"], send_timeout=60)
outbox = SessionOutbox(bridge, engine, table)
