"""Programs on top: evaluations, reweighting, policies."""
