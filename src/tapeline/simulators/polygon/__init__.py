"""Polygon.io (now Massive), simulated."""
