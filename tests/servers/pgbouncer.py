"""pgbouncer in transaction mode before a PostgreSQL server, with one connection to it."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.backlog import eventually
from tests.servers.need import absent
from tests.servers.postgres import Postgres, free_port, hand_over, unprivileged


@contextlib.contextmanager
def pooling(server: Postgres) -> Iterator[int]:
    """Run it until the block ends; returns its port on the loopback."""
    binary = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        absent("pgbouncer", "apt install pgbouncer")
    place, port = Path(tempfile.mkdtemp(prefix="wpb")), free_port()
    (place / "users").write_text('"postgres" ""\n')
    (place / "ini").write_text(
        f"""[databases]
* = host={server.place} port={server.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {place}/users
pool_mode = transaction
default_pool_size = 1
"""
    )
    for path in (place, *place.iterdir()):
        hand_over(path)
    with (place / "log").open("wb") as log:
        command = [*unprivileged(), binary, str(place / "ini")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(lambda: _listens(port), (place / "log").read_text)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(place)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
