"""finegrain-bench: pairs that are frozen, so that two people who quote a figure mean the same pixels.

`v1.yaml` says how the pairs of a version are made, `v1.csv` what each must come out as. Neither ever changes: a mistake is mended
in a new version.
"""
