"""Quality control of pairs: what is measured of low dose beside normal dose, and what the numbers say: keep, or reject and why.

`measure_pair` looks at one pair alone, and knows no limits; `judge` looks at all pairs of a build, and sees no image.
"""

from finegrain.pairs.qc.measure import measure_pair
from finegrain.pairs.qc.pictures import Pictures, fingerprint, same_picture
from finegrain.pairs.qc.quality import PairQuality
from finegrain.pairs.qc.verdict import CHECKS, Finding, Judge, Judged, Limit, QcLimits, Reason, Status, Verdict, judge
from finegrain.pairs.qc.view import BODY_HU, HIGHEST_HU, LOWEST_HU

__all__ = [
    "BODY_HU", "CHECKS", "HIGHEST_HU", "LOWEST_HU", "Finding", "Judge", "Judged", "Limit", "PairQuality", "Pictures", "QcLimits",
    "Reason", "Status", "Verdict", "fingerprint", "judge", "measure_pair", "same_picture",
]  # fmt: skip
