"""The admin API: one table of operations, from which come routing, reading and the OpenAPI document."""
