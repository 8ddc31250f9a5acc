"""finegrain takes the noise out of low-dose CT, keeps the texture, and proves both.

The package in the order the data travels:

    errors, hu, config, frequency,
        noise_power                 the ground that every stage stands on
    scan                            DICOM and NIfTI in and out: `CTVolume`
    simulate                        normal dose → low dose; phantoms with exact truth
    pairs                           low dose beside normal dose, split by patient
    networks, train                 three block families on equal terms; the dual-domain loss
    denoise                         model + volume → volume, without torch
    evaluate                        fidelity, texture, noise power, detectability, statistics per patient; anybody's images
    figures, report                 results → pictures → one HTML page
    physics                         phantom scans before and after a denoiser
    demo, study                     the two experiments from end to end
    cli                             the command line
"""

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CTVolume": "finegrain.scan.volume",
    "read_series": "finegrain.scan.dicom",
    "write_derived_series": "finegrain.scan.derived",
    "simulate_low_dose": "finegrain.simulate.acquire",
    "VirtualPatient": "finegrain.simulate.phantom",
    "load_denoiser": "finegrain.denoise",
    "evaluate_slice": "finegrain.evaluate.run",
    "FinegrainError": "finegrain.errors",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    # Loaded on first use: `finegrain --help` must not wait for scipy.
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'finegrain' has no attribute {name!r}")
