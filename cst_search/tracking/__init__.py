"""The record in MLflow: a view of the study, never its source. MLflow is imported in this wing only.

`mlflow_record` is what a launch calls, `mlflow_mirror` finds what MLflow lacks of a study and brings it, `runs` says
what one run holds (parameters, metrics, tags, files), `connection` reaches the server or database.

MLflow reads these settings when it is imported. By default one call to a server that is down tries for four minutes,
which must not hold a search; and a request that is sent again may be carried out twice and make a run twice, so the
mirror looks before it repeats one. Telemetry stays off.
"""

import os

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
