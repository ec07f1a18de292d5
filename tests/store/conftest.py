"""Databases for the tests of this folder."""

from tests.store.databases import empty_url, postgres_database, postgres_url, sqlite_template, sqlite_url, url

__all__ = ["empty_url", "postgres_database", "postgres_url", "sqlite_template", "sqlite_url", "url"]
