"""Starts the configured jobs when they are due, and keeps a record of every run, whoever started it."""
