"""The record in MLflow: a view of the study, never its source. MLflow is imported in this wing only.

A launch calls `mlflow_record`. `mlflow_mirror` finds and backfills what MLflow lacks of a study, `runs` defines the
content of one run (parameters, metrics, tags, files), and `connection` reaches the server or database.

MLflow reads these settings on import. By default one call to a server that is down retries for four minutes, which must
not delay a search. A repeated request may be carried out twice and create a run twice, so the mirror looks before it
repeats one. Telemetry stays off, and so do two lines that a server's client prints for each run.
"""

import os

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
