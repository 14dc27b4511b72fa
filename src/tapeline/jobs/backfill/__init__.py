"""Backfill loads a provider's history into the stream as raw records."""
