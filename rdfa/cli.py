"""What every command shares: flags of the house, one-line errors, exit codes."""

import sys
from collections.abc import Callable

from rdfa.errors import RunError, UsageError


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run `main(argv)`; print one line and return 2 for a `UsageError`, 1 for a `RunError`, 0 on success.

    A programming error keeps its traceback: hiding it would help nobody.
    """
    try:
        main(argv)
    except (UsageError, RunError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
