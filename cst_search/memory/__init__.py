"""Predicted training memory: arithmetic on shapes, standard library only."""
