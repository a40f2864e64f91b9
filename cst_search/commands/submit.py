"""Run a search as a job on a cluster, independent of this machine: the commands `submit` and `job`.

`execution.ray_jobs` does the work. The command line reaches it through this module, as it does every other wing.
"""

from cst_search.execution.ray_jobs import COMMANDS, Jobs, JobState, check_words, write_out

__all__ = ["COMMANDS", "JobState", "Jobs", "check_words", "write_out"]
