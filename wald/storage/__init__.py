"""Durable state: log, packed files, ledger, dead log; blocking code through the ports."""
