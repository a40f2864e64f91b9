"""Code of a bundle of detectors, in the form that MLflow loads; see `pyfunc_model`.

MLflow copies this file beside the bundle and runs the copy, so it may import installed packages only.
"""

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class BundleModel(PythonModel):
    """Detectors for ``mlflow.pyfunc.load_model(FOLDER).predict([...], params={"tasks": ["cells"], "score": 0.5})``.

    Images are paths, or image files in base64, as a served model takes them. Tasks on one body share its passes.
    """

    def load_context(self, context: Any) -> None:
        """Build the detectors. All that they need is in the bundle, each file checked against its hash."""
        from cst_search.trial.multi_inference import MultiPredictor

        self.detectors = MultiPredictor()
        self.detectors.add_bundle(Path(context.artifacts["bundle"]))

    # MLflow derives the signature from these hints; it has no type for the result
    def predict(self, model_input: list[str], params: dict[str, Any] | None = None):  # type: ignore[no-untyped-def, override]
        """Return ``tasks`` of each image: by name ``width``, ``height`` and ``detections``.

        Args:
            params: ``tasks``, names of the tasks to run, all by default; ``score``, 0.5 by default.
        """
        from cst_search.tracking.served_images import image_files

        chosen = params or {}
        with image_files(model_input) as paths:
            found = list(self.detectors.detect(paths, chosen.get("score", 0.5), tasks=chosen.get("tasks")))
        return [{"tasks": one["tasks"]} for one in found]


set_model(BundleModel())
