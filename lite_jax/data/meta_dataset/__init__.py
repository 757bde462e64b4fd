"""Meta-Dataset: its sources, their specs, and its dumped episodes."""
