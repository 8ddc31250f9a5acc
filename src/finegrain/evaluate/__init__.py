"""How good, and where: fidelity, texture, noise spectra and the statistics over patients."""
