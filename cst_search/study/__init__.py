"""What was tried: trials, fronts and launches in the study database."""
