"""``wald serve``: the daemon in the foreground."""

import click

from wald.cli.options import load_settings, settings_options
from wald.cli.output import say


@click.command()
@settings_options
def serve(config: str | None, target: str | None, data_dir: str | None, socket: str | None) -> None:
    """Run the daemon in the foreground; SIGTERM or Ctrl-C stops it cleanly.

    A clean stop answers everything that was accepted and goes on delivering for
    daemon.stop_deliver_for. What is then still pending is delivered after the next start.
    """
    from wald import app

    loaded = load_settings(config, target, data_dir, socket)
    settings = loaded.settings
    app.configure_logging()
    app.serve(settings, lambda: say(f"wald: serving {settings.socket}, data {settings.data_dir}"))
