"""Meta-Dataset: its sources, and how classes and examples are drawn."""
