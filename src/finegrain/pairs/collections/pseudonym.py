"""What a patient is called outside the scan: a label that is the same for all scans of one patient and does not name anybody."""

from __future__ import annotations

import hashlib
import hmac
import os
import re

KEY_VARIABLE = "FINEGRAIN_PSEUDONYM_KEY"
"""Environment variable with the secret key of the pseudonyms; without it they hide nothing from whoever tries all numbers."""

PUBLIC_ID = re.compile(r"[CLN]\d{3}")
"""Patients of the Mayo collections, which were numbered for publication: chest, liver, head (neuro)."""

SAFE_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a label may look like: it becomes part of file names."""

PLACEHOLDERS = {
    "",
    "0",
    "1",
    "anon",
    "anonym",
    "anonymous",
    "anonymised",
    "anonymized",
    "deidentified",
    "none",
    "patient",
    "unknown",
}
"""What stands in PatientID, in lower case, where it was taken out: the same for everybody, so it tells nobody apart."""


def pseudonym(patient_id: str) -> str:
    """The label of a PatientID: itself if it is a number of the Mayo collections, else ten hex digits of a keyed hash.

    The key is the environment variable FINEGRAIN_PSEUDONYM_KEY. Without one of your own the hash can be computed by anybody, and
    a hospital's short number found by trying them all.

    >>> pseudonym("L067")
    'L067'
    """
    text = patient_id.strip()
    if PUBLIC_ID.fullmatch(text):
        return text
    key = os.environ.get(KEY_VARIABLE) or "finegrain"
    return "p-" + hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()[:10]


def patient_label(patient_id: str, fingerprint: str) -> str:
    """The label of a series' patient; by the fingerprint of the series where the header names nobody.

    >>> patient_label("Anonymous", "0123456789abcdef")
    's-0123456789'
    """
    return f"s-{fingerprint[:10]}" if is_placeholder(patient_id) else pseudonym(patient_id)


def is_placeholder(patient_id: str) -> bool:
    """Whether a PatientID tells nobody apart, because it is empty or was replaced by one word for all."""
    return re.sub(r"[\s_-]", "", patient_id).lower() in PLACEHOLDERS
