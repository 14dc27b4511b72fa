"""Reads the stored data: the Python API, SQL over the lake, replay, and the trace of one tick."""
