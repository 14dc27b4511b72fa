"""Tapeline's errors. Each class says what the caller should do: try again later, or give up and tell a person.

TapelineError
├── ConfigError      the configuration is wrong: nothing runs until a person changes it
│   └── WrongArgument   an argument of a call or a command is impossible: also a ValueError
├── Refused          a provider or service rejected the request (key, plan, rights): a retry cannot help
│   └── Barred          it would reject every other request too, not only this one
├── Busy             another Tapeline process owns this: wait for it or stop it
├── NewerData        the data was written by a newer Tapeline: upgrade
└── Unavailable      a temporary problem (network, server, disk): accepted data is kept, try again
    └── DiskProblem  the disk is full, read-only or broken

Each class has the exit status that a command ends with (the codes of BSD's sysexits.h).
"""

from __future__ import annotations

from typing import ClassVar


class TapelineError(Exception):
    """The base of all errors. The text of an error names the thing, the value and the remedy."""

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


#: A stage that ends with one of these exit statuses is not started again, because only a person can fix the cause.
FATAL_STATUSES = frozenset({ConfigError.exit_status, Refused.exit_status, Busy.exit_status, NewerData.exit_status})
