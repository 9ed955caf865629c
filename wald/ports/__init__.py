"""The doors to the outside, as protocols whose docstrings are the contract.

Real and simulated implementations pass the same contract tests. Blocking code only.
"""

from wald.ports.ledger import DeadLetters, Ledger, Store, Transaction, Underway
from wald.ports.sinks import AuditableSink, EncodingSink, GrantingSink, Sink, SinkFactory
from wald.ports.system import Chance, Clock, File, FileStat, FileSystem

__all__ = [
    "AuditableSink",
    "Chance",
    "Clock",
    "DeadLetters",
    "EncodingSink",
    "File",
    "FileStat",
    "FileSystem",
    "GrantingSink",
    "Ledger",
    "Sink",
    "SinkFactory",
    "Store",
    "Transaction",
    "Underway",
]
