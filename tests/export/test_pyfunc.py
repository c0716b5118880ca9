"""The code of registered models."""

from sentexp.export.pyfunc import python_model
from sentexp.serving import pyfunc


def test_models_that_were_registered_by_earlier_versions_find_their_code():
    """Their `model.py` says `from sentexp.serving.pyfunc import python_model`."""
    assert pyfunc.python_model is python_model
