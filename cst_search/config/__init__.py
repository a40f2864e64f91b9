"""Recipes, search spaces, and the files that hold them."""
