"""Where text and log-probabilities come from."""
