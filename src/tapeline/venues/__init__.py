"""Local stand-ins for the three providers, on real sockets: for the demo, for tests, and for users' own CI."""

from tapeline.venues.faults import FAULTS
from tapeline.venues.options import VenueOptions
from tapeline.venues.serve import serve
from tapeline.venues.venue import CERTIFICATE, Venue

__all__ = ["CERTIFICATE", "FAULTS", "Venue", "VenueOptions", "serve"]
