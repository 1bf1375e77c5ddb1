"""The ways a command ends that are not success, each with its exit code."""


class UserError(ValueError):
    """A mistake in the user's input: one line that names the field or file, its value, the fix."""

    exit_code = 2


class DamagedError(UserError):
    """A checkpoint whose files are not what was written."""


class UnreadableError(UserError):
    """A checkpoint that the disk or the network does not give, which tells nothing of its bytes."""


class StoppedRunError(Exception):
    """The run can't go on: a non-finite loss, or data that can't be read."""

    exit_code = 3


class BadDataError(StoppedRunError):
    """Too many images can't be read; all that was learned up to there is good."""


class StalledInputError(StoppedRunError):
    """No batch came for too long; all that was learned up to there is good."""


class DivergedError(StoppedRunError):
    """The numbers of the run went wrong.

    Attributes:
      before: the step from which on they were.
    """

    def __init__(self, message: str, *, before: int):
        super().__init__(message)
        self.before = before


class PreemptedError(Exception):
    """The machine asked for its resources back; the same command resumes the run."""

    exit_code = 75
