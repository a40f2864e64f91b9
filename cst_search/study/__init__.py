"""The study database: trials, Pareto fronts and launches."""
