"""Reports with numbers that are known, and what a browser would make of their pages."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from finegrain.figures import Detection
from finegrain.report import CropView, DemoReport, EvaluationReport, Method, SliceView, StudyReport, StudyRow, WorstCase

HOSTILE = '<script>alert("x")</script> & $\\frac{1}{0}$ \'"><img src=http://evil.example/x.png>'
PIXEL_MM = 1.5
ARMS = ("low dose", "convolution only", "hybrid, dual-domain loss")


def thorax(noise_hu: float, seed: int) -> np.ndarray:
    """A body with a lung full of small vessels, a spine, and noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:160, :160] - 80.0
    hu = np.where((x / 72) ** 2 + (y / 58) ** 2 < 1, 50.0, -1000.0)
    lung = ((x + 34) / 26) ** 2 + (y / 36) ** 2 < 1
    vessels = np.random.default_rng(0).random((40, 40)) > 0.85
    hu[lung] = np.where(np.kron(vessels, np.ones((4, 4))), -100, -850)[lung]
    hu[(x / 9) ** 2 + ((y - 36) / 9) ** 2 < 1] = 600
    return hu + generator.normal(0, noise_hu, hu.shape)


def slice_view(name: str = "z = −83.5 mm") -> SliceView:
    return SliceView(name, PIXEL_MM, thorax(5, 1), thorax(40, 2), thorax(3, 3))


def demo_report() -> DemoReport:
    frequency = np.linspace(0.02, 0.5, 20)
    low = {"psnr_db[abdomen-40/400]": 24.314, "hf_ratio[fine_texture]": 1.912, "hf_coherence[fine_texture]": 0.6114}
    denoised = {"psnr_db[abdomen-40/400]": 30.127, "hf_ratio[fine_texture]": 0.713, "hf_coherence[fine_texture]": 0.7425}
    return DemoReport(
        title="A chest CT at 25 % dose",
        what="One slice.",
        dose_fraction=0.25,
        slices=[slice_view()],
        measures={"low dose": {**low, "hu_bias[bone]": float("nan")}, "denoised": {**denoised, "hu_bias[bone]": float("nan")}},
        nps={name: (frequency, scale * frequency) for name, scale in (("normal dose", 9), ("low dose", 36), ("denoised", 2))},
        noise_sd_hu={"normal dose": 20.4, "low dose": 41.2, "denoised": 9.3},
        timings_s={"denoise": 1.234},
        facts={"seed": "0"},
        next_commands=[("finegrain denoise IN OUT", "denoise a scan of your own")],
        attribution="# Source\n\nA scan, <https://doi.org/10.7937/x>.",
        model_card={"name": "finegrain-s"},
    )


def study_report() -> StudyReport:
    def row(key: str, label: str, better: str, means: tuple[float, float, float]) -> StudyRow:
        return StudyRow(key, label, better, {arm: (mean, 0.123, 4) for arm, mean in zip(ARMS, means, strict=True)})  # type: ignore[arg-type]

    table = [
        row("psnr_db[abdomen-40/400]", "PSNR, window 40/400 HU, dB", "higher", (24.31, 29.87, 30.21)),
        row("ssim[abdomen-40/400]", "SSIM, window 40/400 HU", "higher", (0.6012, 0.8423, 0.8399)),
        row("hf_ratio[fine_texture]", "HF energy ratio, fine texture", "one", (1.912, 0.662, 1.104)),
        row("hf_coherence[fine_texture]", "HF coherence, fine texture", "higher", (0.611, 0.742, 0.731)),
        row("hu_bias[lung]", "CT number shift, lung, HU", "lower", (0.01, float("nan"), 0.02)),
    ]
    crop = slice_view().normal_dose[48:80, 30:62]
    comparison = {"metric": "psnr_db[abdomen-40/400]", "baseline": "convolution only", "n": 4, "mean_difference": 0.337}
    tests = {"interval": (-0.04, 0.71, "t"), "p_t": 0.0712, "p_wilcoxon": 0.125, "p_holm": None, "effect_size": 1.31}
    sizes = {"parameters": 448_000, "macs_per_512": 2.1e10, "seconds_per_slice": 0.21, "best_step": 400, "train_seconds": 98.0}
    return StudyReport(
        title="A study",
        scale_note="Four patients.",
        arms=[{"name": arm, "family": "hybrid", "loss": "mean squared error", **sizes} for arm in ARMS[1:]],
        proposed=ARMS[2],
        table=table,
        comparisons=[{**comparison, **tests, "verdict": "not testable"}],
        curves={arm: [(100, 14.0), (200, 12.5)] for arm in ARMS[1:]},
        crops=[CropView("lung", PIXEL_MM, {"normal dose": crop, "low dose": crop + 9, **dict.fromkeys(ARMS[1:], crop - 3)})],
        per_patient={row.key: {arm: [row.values[arm][0]] * 4 for arm in ARMS} for row in table},
        facts={"seed": "0"},
        config_yaml="title: <A study>",
        claims=[{"claim": "PSNR rises", "found": "+0.3 dB", "verdict": "cannot be said", "reach": "", "why": "four patients"}],
    )


class Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fetching = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        self.addresses += [value or "" for name, value in attrs if name in fetching]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def ramp_crop(side: int = 40) -> CropView:
    """A place whose HU rise by 10 from column to column, three flat images of 100, 107 and −850 HU, and the ramp 200 HU higher."""
    ramp = np.tile(10.0 * np.arange(side), (side, 1))
    flat = {"low dose": 100.0, "a filter": 107.0, "lung air": -850.0}
    images = {"normal dose": ramp, **{name: np.full((side, side), hu) for name, hu in flat.items()}, "BM3D": ramp + 200}
    return CropView("a ramp", 0.75, images, (40, 400))


def evaluation_report() -> EvaluationReport:
    """Every part of a page of results that no study needs, around `ramp_crop`."""
    methods = [Method("low dose", "input"), Method("a filter", "candidate"), Method("BM3D", "free")]
    methods += [Method(f"blend {share}", "free", start="a filter") for share in (0.1, 0.3)]

    def row(key: str, better: str, *means: float) -> StudyRow:
        values = {method.name: (mean, 0.25, 6) for method, mean in zip(methods, means, strict=True)}
        return StudyRow(key, key, better, values)  # type: ignore[arg-type]

    frequency = np.linspace(0.05, 0.6, 12)
    nps = {
        name: (frequency, scale * frequency)
        for name, scale in (("normal dose", 40), ("low dose", 160), ("a filter", 9), ("BM3D", 8))
    }
    bands = {
        name: [(0.0, 0.3, ratio, 0.9, 0.95), (0.3, 0.6, ratio**2, 0.5, None)] for name, ratio in (("low dose", 2.0), ("BM3D", 0.5))
    }
    return EvaluationReport(
        title="Two filters",
        methods=methods,
        table=[
            row("psnr_db[abdomen-40/400]", "higher", 25.0, 30.5, 29.5, 30.2, 29.0),
            row("ssim[abdomen-40/400]", "higher", 0.6, 0.85, 0.84, 0.84, 0.8),
            row("hf_ratio[fine_texture]", "one", 1.9, 0.7, 0.6, 0.8, 1.1),
            row("hf_coherence[fine_texture]", "higher", 0.6, 0.77, 0.71, 0.76, 0.72),
            row("hf_ratio[uniform]", "one", 3.0, 0.2, 0.1, 0.3, 0.9),
            row("hu_bias[lung]", "zero", 0.1, -0.6, 0.4, -0.5, -0.3),
            row("psnr_db[abdomen-40/400,thorax]", "higher", 24.0, 29.5, 28.5, 29.2, 28.0),
            row("rmse_hu", "lower", 38.0, 17.0, 19.0, 18.0, 22.0),
        ],
        scale_note="Six patients.",
        crops=[
            ramp_crop(),
            CropView("second place", 0.75, {"normal dose": np.zeros((20, 20)), "low dose": np.full((20, 20), 5.0)}),
        ],
        nps=nps,
        bands=bands,
        worst=[WorstCase("patient 3", "slice 12", "a filter", "psnr_db[abdomen-40/400]", 24.125, ramp_crop())],
        detectability={
            "CHO": {
                "low dose": [Detection("5 mm, +15 HU", 2.0, 1.5, 2.5)],
                "BM3D": [Detection("5 mm, +15 HU", 2.25, 1.75, 2.75, (0.25, -0.03, 0.53))],
            },
            "NPWE": {
                "low dose": [Detection("5 mm, +15 HU", 1.25, 1.0, 1.5)],
                "BM3D": [Detection("5 mm, +15 HU", 1.75, 1.5, 2.0, (0.5, 0.31, 0.69), True)],
            },
        },
        plan=["0.2 dB would need 9 patients."],
        qc=[("pairs kept", "96 of 100")],
        repeat=[("finegrain evaluate --a-command-that-is-longer-than-any-phone-is-wide --out page.html", "this page again")],
        facts={"seed": "0"},
        config_yaml="title: Two filters",
    )
