"""The search: samplers, early stopping and the search session."""
