"""Errors that carry their exit code. Everything else that escapes is a bug or a library's own error: exit code 1."""


class UserError(Exception):
    """Wrong usage, config or data, found before anything expensive started (exit code 2).

    The message names the key or file, the cause and the fix, in one or two sentences.
    """

    exit_code = 2


class GateError(Exception):
    """A gate said no (exit code 3). The message says which figure, and what it had to be."""

    exit_code = 3


class RunError(Exception):
    """A run that started and cannot go on (exit code 1). The message names the actor or stage at fault."""

    exit_code = 1


class StallError(RunError):
    """A stage of a run did not answer in time. The message names the actor and what it was asked."""


class LostError(RunError):
    """A process of the run is gone: a fault of where it ran. The run can go on at its newest commit."""
