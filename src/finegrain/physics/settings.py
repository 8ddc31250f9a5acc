"""The knobs of phantom checks: where things are if finding fails, the tasks, and every tolerance with where it comes from."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from finegrain.config import Config


class _Knobs(Config):
    model_config = ConfigDict(allow_inf_nan=False)


class Tolerance(_Knobs):
    """How far a value may lie from its reference; a side that says nothing is open, one that says both takes the wider."""

    fall: float | None = Field(None, ge=0, description="In the unit of the check.")
    fall_percent: float | None = Field(None, ge=0, description="In percent of the reference.")
    rise: float | None = Field(None, ge=0, description="In the unit of the check.")
    rise_percent: float | None = Field(None, ge=0, description="In percent of the reference.")
    source: str = Field("ours", description="Where the numbers come from.")

    def limits(self, reference: float) -> tuple[float, float]:
        """Least and largest value that is allowed; infinite where a side is open."""
        fall = _wider(self.fall, self.fall_percent, reference)
        rise = _wider(self.rise, self.rise_percent, reference)
        return reference - fall, reference + rise


def _wider(absolute: float | None, percent: float | None, reference: float) -> float:
    told = [absolute] if absolute is not None else []
    told += [percent / 100 * abs(reference)] if percent is not None else []
    return max(told, default=float("inf"))


class Limits(_Knobs):
    """Values that a scan must keep by itself, whatever it was before."""

    water_hu: tuple[float, float] | None = Field(
        (-7.0, 7.0), description="CT number of the plain material; none for a phantom of a plastic that is not made like water."
    )
    uniformity_hu: float | None = Field(5.0, gt=0, description="Largest difference between the centre and any place near the edge.")
    source: str = Field(
        "ACR CT accreditation programme (criteria as in McCollough et al. 2004, Med Phys 31:2423)",
        description="Where the two come from.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.water_hu is not None and not self.water_hu[0] < self.water_hu[1]:
            raise ValueError(f"water_hu must rise, got {list(self.water_hu)}")
        return self


def _sides(fall: float | None, rise: float | None) -> Tolerance:
    return Tolerance(fall_percent=fall, rise_percent=rise)


class Tolerances(_Knobs):
    """What may differ from a reference scan, for each check. All defaults are ours: no source tells what a denoiser may change."""

    ct_number: Tolerance = Tolerance(fall=3, fall_percent=1, rise=3, rise_percent=1)
    uniformity: Tolerance = Tolerance(fall=2, rise=2)
    noise: Tolerance = _sides(None, 5)
    nps_mean_frequency: Tolerance = _sides(15, 15)
    nps_peak_frequency: Tolerance = _sides(None, None)
    nps_shape_distance: Tolerance = _sides(None, None)
    ttf_f50: Tolerance = _sides(10, 20)
    ttf_f10: Tolerance = _sides(10, 20)
    d_prime_npw: Tolerance = _sides(5, None)
    d_prime_cho: Tolerance = _sides(10, None)


ACCEPTANCE = Tolerances(
    noise=_sides(15, 15), nps_mean_frequency=_sides(10, 10), d_prime_npw=_sides(15, None), d_prime_cho=_sides(25, None)
)
"""Against an earlier acceptance run of the same scanner and method; ours."""


class Disc(_Knobs):
    """A low-contrast disc that an observer is asked to find."""

    diameter_mm: float = Field(gt=0, le=100)
    contrast_hu: float = Field(gt=0, le=2000)


TASKS = (Disc(diameter_mm=3, contrast_hu=14), Disc(diameter_mm=5, contrast_hu=7), Disc(diameter_mm=10, contrast_hu=3))
"""Three of the four rods of the MITA CCT189 low-contrast body."""


class RodPlace(_Knobs):
    """A rod by the user's word: from the body's centre, x to the right, y down, as the image is shown."""

    name: str = Field(pattern=r"^[\w .,+/()-]{1,40}$")
    x_mm: float
    y_mm: float
    diameter_mm: float = Field(gt=1, le=100)
    expected_hu: tuple[float, float] | None = Field(None, description="Range that its CT number must lie in.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.expected_hu is not None and not self.expected_hu[0] < self.expected_hu[1]:
            raise ValueError(f"expected_hu must rise, got {list(self.expected_hu)}")
        return self


class BodyPlace(_Knobs):
    """The body by the user's word, where its outline cannot be found: rows and columns in pixels from the first one."""

    row: float
    column: float
    diameter_mm: float = Field(gt=20, le=1000)


class PhantomSettings(_Knobs):
    """Where things are; whatever is left out is found."""

    body: BodyPlace | None = None
    uniform_slices: tuple[int, int] | None = Field(None, description="First and last slice of the uniform module, from 1.")
    rod_slices: tuple[int, int] | None = Field(None, description="First and last slice of the module with rods, from 1.")
    rods: tuple[RodPlace, ...] | None = Field(None, description="All rods; an empty list means that there are none.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("uniform_slices", "rod_slices"):
            told = getattr(self, name)
            if told is not None and not 1 <= told[0] <= told[1]:
                raise ValueError(f"{name} must be two slice numbers from 1, the first not above the last, got {list(told)}")
        if self.rods is not None and len({rod.name for rod in self.rods}) < len(self.rods):
            raise ValueError("two rods share a name")
        return self


class PhysicsSettings(_Knobs):
    """Everything that `finegrain physics` can be told in a YAML file."""

    phantom: PhantomSettings = PhantomSettings()
    limits: Limits = Limits()
    after: Tolerances = Field(Tolerances(), description="What a scan may change against the one before.")
    baseline: Tolerances = Field(ACCEPTANCE, description="What a run may differ from the acceptance run.")
    tasks: tuple[Disc, ...] = Field(TASKS, description="Discs for d′ from TTF and NPS.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("two tasks are the same disc")
        return self
