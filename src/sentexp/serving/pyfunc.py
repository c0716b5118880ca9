"""The name under which models that were registered by earlier versions look for their code."""

from sentexp.export.pyfunc import python_model

__all__ = ["python_model"]
