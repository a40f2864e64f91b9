"""Who runs the trials: this process, Ray on this machine, or a Ray cluster."""
