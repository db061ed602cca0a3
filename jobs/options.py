"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a configuration key."
)

_RUN_OPTIONS = (
    click.option("--input", "input_path", help="The input: a file, a folder or a glob."),
    click.option("--output", "output_path", help="The OUTPUT directory."),
    click.option("--budget-usd", type=float, help="Stop before more than this is spent."),
)


def run_options(command: Command) -> Command:
    """What a run reads, where it writes and what it may cost."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command
