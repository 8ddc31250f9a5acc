"""The paper's experiment from end to end: pairs → methods on equal terms → measures → statistics → report.

run.py         the main path: what is done, in which order, and what is not done again
methods.py     one method of a study, trained or tuned, and every test slice denoised with it
classical.py   block matching, non-local means and total variation, tuned on the validation pairs
images.py      the images that a method gives: itself, blends, equalisers
kept.py        what is kept of the measures, and what it holds for
measuring.py   the measures of every test slice
lesions.py     the lesions that are put into test slices
detecting.py   their detectability under every method
results.py     all that was found, as plain data: tables, comparisons, generalisation
claims.py      the paper's claims, each with what this study found
page.py        results → the report's contents
"""

from finegrain.study.run import StudyOutcome, run_study

__all__ = ["StudyOutcome", "run_study"]
