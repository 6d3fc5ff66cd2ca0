"""Durable tasks and events on nothing but Postgres."""
