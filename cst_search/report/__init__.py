"""Output for people: report page, figure, tables, live progress."""
