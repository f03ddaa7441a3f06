"""What every command shares: one-line errors and exit codes."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from rdfa.errors import RunError, UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line too: `UsageError`, with the nearest flag for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        hint = f"see {self.prog} --help"
        if unknown := re.match(r"unrecognized arguments: (-[\w-]+)", message):
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else hint
        raise UsageError(f"{message}: {hint}")


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run `main(argv)`; print one line and return 2 for a `UsageError`, 1 for a `RunError`, 0 on success.

    What the operating system refuses (a full disk, a folder that may not be written) is a failed run and one line as
    well. A programming error keeps its traceback: hiding it would help nobody.
    """
    try:
        main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output is gone, as head is after its lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is left at exit
        return 1
    except (UsageError, RunError) as error:
        _complain(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        if error.strerror is None:
            raise
        _complain(f"{error.filename or 'writing'}: {error.strerror}; make room for it, or name another place")
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _complain(text: str) -> None:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
