"""Which device the assets plan for: this machine's, unless the deployment or the lineage names another."""

import dagster as dg
from pydantic import Field, field_validator

from llm_assets.quantization.hardware import Hardware, HardwareConfig, detect_hardware, find_gpu


class HardwareResource(dg.ConfigurableResource):
    """The machine at hand and the GPU that variants are made for."""

    target: str | None = Field(default=None, description="Known GPU of the whole deployment; unset means this machine.")

    @field_validator("target")
    @classmethod
    def _known(cls, target: str | None) -> str | None:
        return HardwareConfig(target=target).target

    def here(self) -> Hardware:
        """The device of this process."""
        return detect_hardware()

    def target_of(self, lineage: HardwareConfig) -> Hardware:
        """The device a lineage's variants will run on: the lineage's target, else the deployment's, else this one."""
        target = lineage.target or self.target
        return find_gpu(target) if target else self.here()
