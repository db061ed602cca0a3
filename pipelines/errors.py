"""The two ways something can be wrong: with a run (raise) or with one row (a value)."""

from dataclasses import dataclass
from typing import Literal

ErrorKind = Literal[
    "invalid_row",
    "invalid_request",
    "context_length",
    "unsupported",
    "template",
    "parser",
    "engine",
    # What came back could not be read, or states no usable token counts.
    "malformed",
    "lost_leader",
    # The tier could not be reached; a fallback tier may answer.
    "unavailable",
]


EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_ERRORS, EXIT_BUDGET = range(5)


class UsageProblem(Exception):
    """The run cannot start: bad configuration, input or output. Exit code 2.

    The message names the file or key and the remedy, because it is all that the user sees.
    """


class Busy(UsageProblem):
    """Somebody else works there. Exit code 2, unless that is what was asked for."""


class RunFailure(Exception):
    """The run started and could not finish. Exit code 1; what was committed stays."""


@dataclass(frozen=True)
class RowProblem:
    """Why one row has no answer. The row keeps flowing and ends in `errors/`."""

    kind: ErrorKind
    message: str
