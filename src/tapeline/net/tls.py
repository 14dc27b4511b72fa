"""The certificate authorities that TLS connections trust: the system's, and one from a file."""

from __future__ import annotations

import ssl


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """A TLS context that trusts the system's certificate authorities, and also those in `ca_file` if it is given."""
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context
