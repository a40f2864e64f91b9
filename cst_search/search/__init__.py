"""What to try next: samplers, early stopping, the search session."""
