"""The process people talk to: holds the sockets, keeps its children running, touches no data."""
