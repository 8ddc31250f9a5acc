"""Objects whose truth is known: virtual patients (`anatomy`) to train and test pipelines on, and physical test phantoms
with analytic line integrals (`standard`) to test projectors and image quality metrics against. Both give HU on a square
grid whose isocentre is the pixel with index n // 2 on each axis; neither is clinical evidence."""

from finegrain.simulate.phantom.anatomy import LABELS, PhantomVolume, VirtualPatient
from finegrain.simulate.phantom.standard import (
    CCT189_INSERTS,
    CONTRAST_INSERTS,
    LINE_PAIRS_PER_CM,
    Ellipse,
    EllipsePhantom,
    Insert,
    Rectangle,
    cct189_phantom,
    insert_phantom,
    line_pair_centre,
    line_pair_phantom,
    water_disc,
)

__all__ = [
    "CCT189_INSERTS",
    "CONTRAST_INSERTS",
    "LABELS",
    "LINE_PAIRS_PER_CM",
    "Ellipse",
    "EllipsePhantom",
    "Insert",
    "PhantomVolume",
    "Rectangle",
    "VirtualPatient",
    "cct189_phantom",
    "insert_phantom",
    "line_pair_centre",
    "line_pair_phantom",
    "water_disc",
]
