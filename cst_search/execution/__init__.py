"""Execution of trials: in this process, by Ray on this machine, or on a Ray cluster."""
