"""Alpaca, simulated."""
