"""``wald serve``: the daemon in the foreground."""

import signal

import click

from wald.cli.options import load_settings, placed, settings_options
from wald.cli.output import say
from wald.errors import WaldError


@click.command()
@settings_options
@click.option("--with-parent", is_flag=True, hidden=True, help="End when the parent does.")
def serve(
    config: str | None,
    target: str | None,
    data_dir: str | None,
    socket: str | None,
    *,
    with_parent: bool,
) -> None:
    """Run the daemon in the foreground; SIGTERM or Ctrl-C stops it cleanly.

    A clean stop answers everything that was accepted and goes on delivering for
    daemon.stop_deliver_for. What is then still pending is delivered after the next start.
    """
    from wald import app
    from wald.system import end_with_parent

    if with_parent:
        end_with_parent(signal.SIGTERM)
    loaded = load_settings(config, target, data_dir, socket)
    settings = loaded.settings
    app.configure_logging()
    try:
        app.serve(
            settings, lambda: say(f"wald: serving {settings.socket}, data {settings.data_dir}")
        )
    except WaldError as error:
        raise placed(error, loaded) from error
