"""Normal dose → low dose: projection, photon counts, filtered backprojection, and phantoms with exact truth.

A monoenergetic noise model of a rebinning fan-beam scanner, not a scanner simulation: spectrum, scatter, focal spot and
helical interpolation are not modelled.
"""
