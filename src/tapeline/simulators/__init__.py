"""Local simulators of the three providers, on real sockets: for the demo, for tests, and for users' own CI."""

from tapeline.simulators.faults import FAULTS
from tapeline.simulators.options import SimulatorOptions
from tapeline.simulators.serve import serve
from tapeline.simulators.simulator import CERTIFICATE, Simulator

__all__ = ["CERTIFICATE", "FAULTS", "Simulator", "SimulatorOptions", "serve"]
