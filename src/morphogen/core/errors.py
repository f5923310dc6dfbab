"""The errors that a user can cause, and what the command line makes of them."""

from __future__ import annotations


class MorphogenError(Exception):
    """Base of all errors raised on purpose; the message is one clear sentence for the user."""

    exit_code = 1


class InputError(MorphogenError):
    """Wrong use or wrong input: names the file or option and says what would be right (exit code 2)."""

    exit_code = 2


class Interrupted(MorphogenError):
    """Work was stopped on request (Ctrl-C, SIGTERM) and has been saved (exit code 3)."""

    exit_code = 3


class NonFiniteError(MorphogenError):
    """A loss, gradient or sample became infinite or not a number, by the weights or the settings; nothing was
    overwritten (exit code 2).
    """

    exit_code = 2


def missing_extra(extra: str, library: str) -> InputError:
    """The refusal where the library of an optional extra is not installed."""
    return InputError(f'this needs {library}; install it with pip install "morphogen[{extra}]"')


def first_line(error: BaseException) -> str:
    """A library's error on one line, for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
