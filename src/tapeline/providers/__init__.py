"""Providers: what each one sends, and how to request it. Pure: no I/O, no clock, no logging."""
