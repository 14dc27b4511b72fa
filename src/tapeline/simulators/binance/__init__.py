"""Binance spot, simulated."""
