"""Runs from a configuration: builders, training, evaluation and checkpoints."""
