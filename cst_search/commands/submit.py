"""Searches on a cluster that go on without this machine: the commands `submit` and `job` of the command line.

The work is `execution.ray_jobs`; the command line reaches it here, as it reaches every other wing.
"""

from cst_search.execution.ray_jobs import COMMANDS, Jobs, JobState, check_words, write_out

__all__ = ["COMMANDS", "JobState", "Jobs", "check_words", "write_out"]
