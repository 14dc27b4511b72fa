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
    """The configuration is wrong. Nothing runs until a person changes it."""

    exit_status = 78


class WrongArgument(ConfigError, ValueError):
    """An argument of a call or a command is impossible."""


class Refused(TapelineError):
    """A provider or service rejected the request: its key, its plan or its rights. A retry cannot help."""

    exit_status = 77


class Barred(Refused):
    """The provider would reject every other request too, so the caller must not go on to the next one."""


class Busy(TapelineError):
    """Another Tapeline process owns this. Wait for it, or stop it."""

    exit_status = 75


class NewerData(TapelineError):
    """A newer Tapeline wrote the data. Nothing was changed. Upgrade to read it."""

    exit_status = 65


class Unavailable(TapelineError):
    """A temporary problem of the network, a server or a disk. Accepted data is kept. Try again."""

    exit_status = 69


class DiskProblem(Unavailable):
    """The disk is full, read-only or broken, or a file on it is damaged."""

    exit_status = 74


#: A stage that ends with one of these exit statuses is not started again, because only a person can fix the cause.
FATAL_STATUSES = frozenset({ConfigError.exit_status, Refused.exit_status, Busy.exit_status, NewerData.exit_status})
