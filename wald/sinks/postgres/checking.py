"""What ``wald check`` says of a PostgreSQL server and a table, and the grants that a role needs."""

from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl, urlsplit

import psycopg

from wald.model import Finding, Severity
from wald.sinks.postgres import errors, progress
from wald.sinks.postgres.options import Options, quote
from wald.sinks.postgres.session import Session
from wald.sinks.postgres.table import Table, create_documents, look

_OLDEST = 120_000  # generated columns are told from others
_LOCAL = ("", "localhost", "127.0.0.1", "[::1]", "::1")
_SAFE_MODES = frozenset({"verify-full"})


def findings(session: Session, options: Options) -> Iterator[Finding]:
    """Yield what is found at the server, without writing anything.

    Raises:
        psycopg.Error: it cannot be asked.
    """
    yield from _of_server(session, options)
    yield from _of_progress(session, options)
    yield from _of_table(session, options)


def _of_server(session: Session, options: Options) -> Iterator[Finding]:
    yield _ok("server", f"{session.server} at {options.place}")
    if session.version < _OLDEST:
        yield _wrong("version", "PostgreSQL before 12", "upgrade the server")
    if session.encoding != "UTF8":
        msg = f"the database holds {session.encoding}: a text that it cannot hold is refused"
        yield Finding(Severity.WARNING, "postgres.encoding", msg, "use a database of UTF8")
    if not is_verified(options.url):
        msg = "nobody verifies that it is this server: the URL has no sslmode=verify-full"
        hint = 'url = "postgresql://...?sslmode=verify-full&sslrootcert=/etc/ssl/ca.pem"'
        yield Finding(Severity.WARNING, "postgres.tls", msg, hint)


def is_verified(url: str) -> bool:
    """Tell whether the server cannot be another one: by its certificate, or it is on this host."""
    parts = urlsplit(url)
    named = dict(parse_qsl(parts.query))
    hosts = parts.netloc.rpartition("@")[2] or named.get("host", "")
    local = all(
        host.rpartition(":")[0] in _LOCAL[1:] or host in _LOCAL or host.startswith(("/", "%2F"))
        for host in hosts.split(",")
    )
    return local or named.get("sslmode") in _SAFE_MODES


def _of_progress(session: Session, options: Options) -> Iterator[Finding]:
    name = options.progress.quoted
    if not session.exists(name):
        yield from _to_be_made(session, options.quoted_schema, "progress", "progress table")
    elif _may(session, name, "SELECT", "INSERT", "UPDATE"):
        yield _ok("progress", "progress table writable")
    else:
        msg = f"the progress table {name} is there, and this role may not read and write it"
        yield _wrong("progress", msg)


def _of_table(session: Session, options: Options) -> Iterator[Finding]:
    name = options.table.quoted
    if options.mode == "document" and not session.exists(name):
        schema, _, _ = name.rpartition(".")
        yield from _to_be_made(session, schema or None, "table", f"table {name}")
        return
    try:
        table = look(session, options)
    except psycopg.Error as error:
        yield _wrong("table", errors.describe(error), errors.systemic(error, "").hint)
        return
    rights = ("INSERT",) if not table.after else ("SELECT", "INSERT", "UPDATE")
    if not _may(session, name, *rights):
        yield _wrong("grants", f"this role lacks {' or '.join(rights)} on {name}")
    elif table.after and not _has_unique(session, options):
        key = ", ".join(options.conflict)
        hint = f"CREATE UNIQUE INDEX ON {name} ({', '.join(map(quote, options.conflict))})"
        yield _wrong("conflict", f"no unique index of {name} is of exactly: {key}", hint)
    else:
        yield _ok("table", f"table found, {len(table.columns)} columns")
    yield from _of_upsert(session, table)


def _of_upsert(session: Session, table: Table) -> Iterator[Finding]:
    allowed = "SELECT has_database_privilege(current_database(), 'TEMP')"
    if table.after and not session.holds(allowed):
        yield _wrong("grants", "this role may not make temporary tables, which mode 'upsert' needs")


def _has_unique(session: Session, options: Options) -> bool:
    return session.holds(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = %s::regclass"
        " AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND"
        " (SELECT array_agg(a.attname::text ORDER BY 1) FROM pg_catalog.pg_attribute a"
        " WHERE a.attrelid = i.indrelid AND a.attnum = ANY ("
        "(i.indkey::int2[])[0:i.indnkeyatts - 1])) = %s::text[])",
        (options.table.quoted, "{" + ",".join(map(quote, sorted(options.conflict))) + "}"),
    )


def _to_be_made(session: Session, schema: str | None, code: str, what: str) -> Iterator[Finding]:
    """Say whether a table that is absent can be made: in a schema, or where the path leads."""
    found = schema is None or session.holds("SELECT to_regnamespace(%s) IS NOT NULL", (schema,))
    if not found:
        may = session.holds("SELECT has_database_privilege(current_database(), 'CREATE')")
    elif schema is None:
        may = session.holds(
            "SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
        )
    else:
        may = session.holds("SELECT has_schema_privilege(to_regnamespace(%s), 'CREATE')", (schema,))
    if may:
        yield _ok(code, f"{what} will be made")
    else:
        yield _wrong(code, f"{what}: it is not there, and this role may not make it")


def _may(session: Session, table: str, *rights: str) -> bool:
    """Tell whether the role has all of some rights, of INSERT on some column at least."""
    return all(
        session.holds(
            f"SELECT has_table_privilege(%s, '{right}') OR has_any_column_privilege(%s, '{right}')",
            (table, table),
        )
        for right in rights
    )


def _ok(code: str, message: str) -> Finding:
    return Finding(Severity.OK, f"postgres.{code}", message)


def _wrong(code: str, message: str, hint: str = "") -> Finding:
    hint = hint or "wald check --print-grants says what the owner of the database must run"
    return Finding(Severity.ERROR, f"postgres.{code}", message, hint)


# --- grants -------------------------------------------------------------------------------------


def grants(options: Options) -> Sequence[str]:
    """Return the statements that let the role of the URL do what the route needs, and no more."""
    role = quote(options.user or "wald")
    row, table = options.progress.quoted, options.table.quoted
    made = [
        f"CREATE SCHEMA IF NOT EXISTS {options.quoted_schema}",
        progress.create(row),
        f"GRANT USAGE ON SCHEMA {options.quoted_schema} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE ON {row} TO {role}",
    ]
    schema, _, _ = table.rpartition(".")
    if schema:
        made.append(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    if options.mode == "document":
        made += [
            create_documents(table),
            f"GRANT INSERT, SELECT (log_id, lsn) ON {table} TO {role}",
        ]
    elif options.mode == "columns":
        made.append(f"GRANT INSERT ON {table} TO {role}")
    else:
        made.append(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {role}")
        database = urlsplit(options.url).path.strip("/")
        if database:
            made.append(f"GRANT TEMPORARY ON DATABASE {quote(database)} TO {role}")
    return made
