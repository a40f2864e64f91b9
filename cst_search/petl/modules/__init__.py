"""The torch modules of the methods, a file each. Imported when a method is applied, so that costs need no torch."""
