"""Code of a logged detector, in the form that MLflow loads ("models from code", no pickle).

MLflow copies this file beside the weights and runs the copy, so it may import installed packages only.
"""

import base64
import binascii
import tempfile
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
        with tempfile.TemporaryDirectory(prefix="cst-search-") as folder:
            paths = [_as_file(text, Path(folder) / f"{i}.image") for i, text in enumerate(model_input)]
            found = list(self.predictor.detect(paths, (params or {}).get("score", 0.5)))
        return [{name: one[name] for name in ("width", "height", "detections")} for one in found]


def _as_file(text: str, path: Path) -> Path:
    """Return the file of an image: the given path, or ``path`` after writing base64 data to it."""
    if len(text) < 4096 and Path(text).is_file():
        return Path(text)
    try:
        path.write_bytes(base64.b64decode(text.partition("base64,")[2] or text, validate=True))
    except binascii.Error:
        raise ValueError(f"image must be the path of a file or a file in base64; got {text[:60]!r}") from None
    return path


set_model(DetectorModel())
