"""The producer in an application: a thin, blocking driver of the wire; no server dependency."""
