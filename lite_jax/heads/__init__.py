"""Classifiers on features: class means, Mahalanobis distances and linear heads."""
