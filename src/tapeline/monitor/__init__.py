"""Collects what the stages report about themselves, and shows it."""
