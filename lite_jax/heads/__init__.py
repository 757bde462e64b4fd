"""Classifiers on features: class means, Mahalanobis distances, a linear map."""
