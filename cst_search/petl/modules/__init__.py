"""Torch modules of the methods, one file each, imported only when a method is applied: costs need no torch."""
