"""Every error that a person can cause and mend.

A `FinegrainError` says in one line what was expected, what came and what to do. The command line prints that line and
exits with code 2; anything else that escapes is a defect of ours and keeps its traceback.
"""


class FinegrainError(Exception):
    """Base of every error that is the input's, not the program's."""


class ScanError(FinegrainError):
    """A scan cannot be read, or must not be treated (not CT, mixed series, missing rescale …)."""


class GeometryError(FinegrainError):
    """Sizes, spacings or distances that no scanner can have, or that do not fit each other."""


class ConfigError(FinegrainError):
    """A configuration holds an unknown key, a wrong value or an impossible combination."""


class ModelError(FinegrainError):
    """A model folder is incomplete, altered, or does not fit the input."""


class DataError(FinegrainError):
    """Pairs, manifests or results that are missing, incomplete or contradictory."""
