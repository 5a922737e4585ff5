"""The store in an SQL database: SQLite, the embedded one, or PostgreSQL.

On SQLite the tables are made when the store is first used. On PostgreSQL `taskbridge store init` makes them: an
application's own user may often not.
"""
