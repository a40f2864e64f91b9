"""One verb, one file; the command line and the Python API both call these."""
