"""Validation of annotations and images: what is sound becomes entries, what is not a finding with its remedy."""
