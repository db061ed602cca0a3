"""Options that several commands share."""

import click

set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a configuration key."
)
