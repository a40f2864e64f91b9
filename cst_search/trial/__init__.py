"""One trial: train and evaluate one configuration. Knows nothing of searches."""
