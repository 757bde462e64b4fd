"""Weights of training examples, learned by hypergradients: noisy labels, pruning."""
