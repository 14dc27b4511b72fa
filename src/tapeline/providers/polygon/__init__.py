"""Polygon.io (now Massive): its wire, what its events mean, its session, its history and its files."""
