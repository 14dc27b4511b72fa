"""What can go wrong, as instructions: try again later, give up and tell a person, or set this record aside.

TapelineError
├── ConfigError      the configuration is wrong: nothing runs until a person changes it
│   └── WrongArgument   what a call or a command was asked for cannot be meant: also a ValueError
├── Refused          a provider or service said no (key, plan, rights): retrying cannot help
│   └── Barred          it says so to everything that is asked of it, not to this alone
├── Busy             another Tapeline process owns this: wait for it or stop it
├── NewerData        the data was written by a newer Tapeline: upgrade
└── Unavailable      not now (network, server, disk): what was accepted is kept, try again
    └── DiskProblem  the disk is full, read-only or broken

Each carries the exit status that a command ends with (the codes of BSD's sysexits.h).
"""

from __future__ import annotations

from typing import ClassVar


class TapelineError(Exception):
    """Base of all; its text names the thing, the value and the remedy."""

    exit_status: ClassVar[int] = 70


class ConfigError(TapelineError):
    exit_status = 78


class WrongArgument(ConfigError, ValueError):
    pass


class Refused(TapelineError):
    exit_status = 77


class Barred(Refused):
    pass


class Busy(TapelineError):
    exit_status = 75


class NewerData(TapelineError):
    exit_status = 65


class Unavailable(TapelineError):
    exit_status = 69


class DiskProblem(Unavailable):
    exit_status = 74


#: A stage that ends with one of these is not started again: only a person can change the cause.
FATAL_STATUSES = frozenset({ConfigError.exit_status, Refused.exit_status, Busy.exit_status, NewerData.exit_status})
