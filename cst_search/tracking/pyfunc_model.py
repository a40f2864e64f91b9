"""Code of a logged detector, in the form that MLflow loads ("models from code", no pickle).

MLflow copies this file beside the weights and runs the copy, so it may import installed packages only.
"""

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class DetectorModel(PythonModel):
    """A detector for ``mlflow.pyfunc.load_model("models:/ID").predict([...], params={"score": 0.5})``.

    Images are paths, or image files in base64, as a served model takes them.
    """

    def load_context(self, context: Any) -> None:
        """Build the detector from the recipe in the weights file. The recipe names the source of the frozen weights."""
        from cst_search.trial.inference import Predictor

        self.predictor = Predictor(Path(context.artifacts["weights"]))

    # MLflow derives the signature from these hints; it has no type for the result
    def predict(self, model_input: list[str], params: dict[str, Any] | None = None):  # type: ignore[no-untyped-def, override]
        """Return ``width``, ``height`` and ``detections`` of each image, as `cst_search.trial.inference` gives them."""
        from cst_search.tracking.served_images import image_files

        with image_files(model_input) as paths:
            found = list(self.predictor.detect(paths, (params or {}).get("score", 0.5)))
        return [{name: one[name] for name in ("width", "height", "detections")} for one in found]


set_model(DetectorModel())
