"""From a motion score to SVD's motion bucket and back: the one mapping that everything goes by."""

import math

MAX_BUCKET = 255
FULL_SCORE = 0.5  # shortest sides per second; this and all above is bucket 255
SCORE_SCALE = 0.01  # shortest sides per second; well below it the buckets are even in the score, above in its logarithm


def motion_bucket(score: float) -> int:
    """The motion bucket, 0..255, of a score in shortest sides per second.

    `bucket = 255 ln(1 + score / 0.01) / ln(1 + 0.5 / 0.01)`, rounded, 255 at most: equal ratios of speed are about
    equally far apart. 127 is 0.06 shortest sides per second. The project's own choice; SVD's authors published none.

    Raises:
        ValueError: the score is negative or no number.
    """
    if not score >= 0.0:
        raise ValueError(f"a motion score is 0 or more, not {score}")
    share = math.log1p(min(score, FULL_SCORE) / SCORE_SCALE) / math.log1p(FULL_SCORE / SCORE_SCALE)
    return round(MAX_BUCKET * share)


def motion_score(bucket: float) -> float:
    """The score, in shortest sides per second, in the middle of a bucket: the inverse of :func:`motion_bucket`.

    Raises:
        ValueError: the bucket is outside 0..255.
    """
    if not 0 <= bucket <= MAX_BUCKET:
        raise ValueError(f"a motion bucket lies in 0..{MAX_BUCKET}, not {bucket}")
    return SCORE_SCALE * math.expm1(bucket / MAX_BUCKET * math.log1p(FULL_SCORE / SCORE_SCALE))
