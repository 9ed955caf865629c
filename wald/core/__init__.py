"""Decisions and bytes: no input or output, no clock, no tasks, no logging."""
