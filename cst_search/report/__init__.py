"""What a person looks at: page, figure, tables, live progress."""
