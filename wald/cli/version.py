"""``wald version``."""

import sys
from importlib.metadata import version as installed_version

import click

from wald.cli.options import json_option
from wald.cli.output import print_json


@click.command()
@json_option
def version(*, as_json: bool) -> None:
    """Print the version of wald, of its formats and of what it runs on."""
    import sqlite3

    from wald.core.events import VERSION
    from wald.core.frame import FORMAT

    facts = {
        "wald": installed_version("wald"),
        "disk_format": FORMAT,
        "wire_version": VERSION,
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(", ".join(f"{name.replace('_', ' ')} {said}" for name, said in facts.items()))
