"""Trained detectors for programs that know nothing of cst-search: ONNX."""
