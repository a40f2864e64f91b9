"""The former address of `cst_search.trial.inference`, which models that were logged to MLflow before 0.2 import."""

from cst_search.trial.inference import Predictor

__all__ = ["Predictor"]
