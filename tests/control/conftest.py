"""Databases for the tests of this folder."""

from tests.store.databases import postgres_database, postgres_url, sqlite_template, sqlite_url, url

__all__ = ["postgres_database", "postgres_url", "sqlite_template", "sqlite_url", "url"]
