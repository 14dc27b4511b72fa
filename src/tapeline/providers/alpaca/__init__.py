"""Alpaca: its wire, what its events mean, its session and its history."""
