"""The error tree: what can be wrong, with a stable code, an exit status and an HTTP status.

    HyperhaError
      UsageError          the command line or a request is malformed          exit 2  HTTP 422
        ConfigError       a configuration file is wrong (file, line, key)     exit 2  HTTP 422
      RefusedError        understood, and refused with the reason             exit 3  HTTP 409
        StaleViewError    the state changed since the operator looked         exit 3  HTTP 409
        BusyError         another operation runs                              exit 3  HTTP 423
        LossError         would give up data; must be confirmed               exit 3  HTTP 409
      NotFoundError       no such module, checker, operation                  exit 3  HTTP 404
      DeniedError         who asks may not                                    exit 3  HTTP 403
      FailedError         was tried and did not work                          exit 1  HTTP 500
        RecordDamagedError   a durable record cannot be read
        ReplicationError     the data path or the stream failed
      TimedOutError       no result in time                                   exit 4  HTTP 504
      UnreachableError    a node does not answer                              exit 5  HTTP 502

Expected conditions inside hyperha are events or values; errors are for the edges.
"""

from __future__ import annotations

from typing import ClassVar


class HyperhaError(Exception):
    """Root of all reports: `text` names the thing and the value, `fix` says what to do."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, text: str, fix: str = "", *, code: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.fix = fix
        self.problem_code = code or self.code

    def __str__(self) -> str:
        return f"{self.text}. {self.fix}" if self.fix else self.text


class UsageError(HyperhaError):
    """The command line or a request is malformed."""

    code = "usage"
    exit_status = 2
    http_status = 422


class ConfigError(UsageError):
    """A configuration file is wrong; the text names file, line and key."""

    code = "config-invalid"


class RefusedError(HyperhaError):
    """Understood, and refused with the reason."""

    code = "refused"
    exit_status = 3
    http_status = 409


class StaleViewError(RefusedError):
    """The state is no longer what the operator saw."""

    code = "stale-view"


class BusyError(RefusedError):
    """Another operation runs on the module."""

    code = "busy"
    http_status = 423


class LossError(RefusedError):
    """Would give up data; the text states the loss, `--confirm MODULE` is the way past it."""

    code = "loss"


class NotFoundError(HyperhaError):
    """No such module, checker, operation or file."""

    code = "not-found"
    exit_status = 3
    http_status = 404


class DeniedError(HyperhaError):
    """Who asks has no right to."""

    code = "denied"
    exit_status = 3
    http_status = 403


class FailedError(HyperhaError):
    """Was tried and did not work."""

    code = "failed"


class RecordDamagedError(FailedError):
    """A durable record cannot be read; it has been set aside, never guessed."""

    code = "record-damaged"


class ReplicationError(FailedError):
    """The data path or the replication stream failed."""

    code = "replication"


class TimedOutError(HyperhaError):
    """No result within the time allowed."""

    code = "timed-out"
    exit_status = 4
    http_status = 504


class UnreachableError(HyperhaError):
    """A node does not answer."""

    code = "unreachable"
    exit_status = 5
    http_status = 502
