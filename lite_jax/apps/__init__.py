"""Programs built on runs: meta-learning, evaluations, reweighting, policies."""
