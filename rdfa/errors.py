"""The two ways a command can fail, and the exit codes that go with them."""


class UsageError(ValueError):
    """Wrong invocation or configuration: exit code 2. One line: what was wrong, and what to do."""


class RunError(RuntimeError):
    """A run that failed on what it found (data, a checkpoint, a failed check): exit code 1. One line, as above."""
