"""VTAB's tasks and their rules."""
