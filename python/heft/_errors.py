"""Exceptions: one class for each status of libheft, each also the class that Python users expect."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The class of each status, and Python's own class that it also is. Checked against the library by a test.


class HeftError(Exception):
    """An operation of heft failed.

    Attributes:
        status: the name of the status, such as ``"FORMAT"``.
        message: what went wrong, without the place.
        path: the file or folder, ``""`` if none.
        item: the tensor, key or record, ``""`` if none.
        offset: the byte in the file, ``None`` if the error is not about a byte.
        errno: the failed system call's number, 0 if none.
    """

    status = "ERROR"
    message: str
    path: str
    item: str
    offset: int | None
    errno: int | None

    def __init__(
        self, message: str = "", path: str = "", item: str = "", offset: int | None = None, errno: int | None = 0
    ) -> None:
        Exception.__init__(self, message)
        self.message = message
        self.path = path
        self.item = item
        self.offset = offset
        self.errno = errno
        if isinstance(self, OSError):
            setattr(self, "strerror", message)
            setattr(self, "filename", path or None)

    def __str__(self) -> str:
        byte = "" if self.offset is None else f"byte {self.offset}"
        return ": ".join(part for part in (self.path, self.item, byte, self.message) if part)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name == "status"}  # where it is not the class's
        return type(self), (self.message, self.path, self.item, self.offset, self.errno), state


class InvalidArgError(HeftError, ValueError):
    """An argument is wrong."""

    status = "INVALID_ARG"


class IoError(HeftError, OSError):
    """Reading or writing failed."""

    status = "IO"


class NotFoundError(HeftError, FileNotFoundError):
    """A file, a checkpoint in a folder, or a tensor does not exist."""

    status = "NOT_FOUND"


class FormatError(HeftError, ValueError):
    """A file is malformed; ``offset`` is the byte."""

    status = "FORMAT"


class MismatchError(HeftError, ValueError):
    """A checkpoint and a model differ."""

    status = "MISMATCH"


class UnsupportedError(HeftError, NotImplementedError):
    """heft does not support this file or operation."""

    status = "UNSUPPORTED"


class RefusedError(HeftError):
    """A file asks for something that heft refuses for safety, such as running code."""

    status = "REFUSED"


class LimitError(HeftError):
    """A file claims more than a limit allows, or the machine does not have the memory."""

    status = "LIMIT"


class NoMemoryError(HeftError, MemoryError):
    """Memory could not be allocated."""

    status = "NOMEM"


class ExistsError(HeftError, FileExistsError):
    """The destination exists and may not be replaced."""

    status = "EXISTS"


class CancelledError(HeftError):
    """The operation was cancelled."""

    status = "CANCELLED"


CLASSES: dict[str, type[HeftError]] = {
    kind.status: kind
    for kind in (
        InvalidArgError,
        IoError,
        NotFoundError,
        FormatError,
        MismatchError,
        UnsupportedError,
        RefusedError,
        LimitError,
        NoMemoryError,
        ExistsError,
        CancelledError,
    )
}


def make(status: str, message: str, path: str, item: str, offset: int | None, errno: int) -> HeftError:
    """Create the exception of a status; called by the extension module."""
    return CLASSES.get(status, HeftError)(message, path, item, offset, errno)


def log(line: str) -> None:
    """Give a line to the logger "heft"; called by the extension module."""
    import logging

    logging.getLogger("heft").info("%s", line)


def warn(lines: list[str]) -> None:
    """Give warnings to the logger "heft"."""
    if lines:
        import logging

        for line in lines:
            logging.getLogger("heft").warning("%s", line)
