"""The certificate authorities that TLS connections trust: the system's, and one from a file."""

from __future__ import annotations

import ssl

from tapeline.errors import ConfigError


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """A TLS context that trusts the system's certificate authorities, and also those in `ca_file` if it is given.

    Raises ConfigError if the file cannot be read or holds no certificates."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            why = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"ca_file = {ca_file!r} cannot be used: {why}. Name a file of certificates in PEM format.") from error
    return context
