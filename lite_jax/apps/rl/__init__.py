"""Meta-reinforcement learning: policies that adapt by a few policy-gradient steps."""
