"""Whom a TLS connection trusts: the system's certificate authorities, and one of a file."""

from __future__ import annotations

import ssl


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """The system's certificate authorities, and `ca_file` where given."""
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context
