"""Phantom scans, before and after a denoiser: CT numbers, noise, uniformity, NPS, TTF and d′, judged against stated tolerances."""
