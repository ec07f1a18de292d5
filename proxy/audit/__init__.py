"""The record of who changed what: a chain of hashes in the database, and signed anchors of it outside."""
