"""The delivering process: a thread per lane, blocking code; the only one that opens the ledger."""
