"""ORBIT: the protocol's rules, and its videos as a source of tasks."""
