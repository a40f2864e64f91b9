"""What a person configures: recipes, search spaces, the files that hold them."""
