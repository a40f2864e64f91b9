"""cst-search: finds the parameter-efficient fine-tuning configuration of an object detector for the GPU you have."""

__version__ = "0.1.0"
