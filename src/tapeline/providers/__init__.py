"""Providers: what each one sends, and how it is asked. Pure: no I/O, no clock, no logging."""
