"""What a detector is made of, apart from what it learns."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.artifact import Manifest
from models.densities import DensityConfiguration, KernelDensityConfiguration
from models.encoders import DensePatchConfiguration, EncoderConfiguration
from models.geometry import ScanGeometry
from models.heatmap import GaussianUpsampler
from models.images import ResizeMode
from models.inference import FLOAT32, InferencePlan


class DetectorConfiguration(BaseModel):
    """What a detector is made of, but for what it learns.

    Attributes:
        resize: how an image that is not square becomes one.
        sigma: standard deviation of the heatmap's Gaussian, in pixels of the detector's input; None for a quarter of
            the patch.
        inference: how embeddings are computed; what a fitted detector has says so without ``auto``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: ScanGeometry = ScanGeometry()
    encoder: EncoderConfiguration = DensePatchConfiguration()
    density: DensityConfiguration = KernelDensityConfiguration()
    resize: ResizeMode = "squash"
    sigma: float | None = Field(default=None, ge=2, allow_inf_nan=False)
    inference: InferencePlan = InferencePlan()

    @model_validator(mode="after")
    def _sigma_fits(self) -> DetectorConfiguration:
        GaussianUpsampler(self.geometry, self.sigma)  # refuses a sigma that leaves pixels without weight
        return self


def configuration_of(manifest: Manifest) -> DetectorConfiguration:
    """The configuration that a manifest holds; one that was written before there were plans computes in float32.

    Raises:
        KeyError, ValueError: it holds none that this build reads.
    """
    configuration = DetectorConfiguration.model_validate(manifest.configuration["detector"])
    if "inference" in configuration.model_fields_set:
        return configuration
    return configuration.model_copy(update={"inference": FLOAT32})
