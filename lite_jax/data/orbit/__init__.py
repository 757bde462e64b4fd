"""ORBIT: its protocols, and its videos as a source of tasks."""
