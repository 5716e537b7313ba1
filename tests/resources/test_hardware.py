"""The hardware resource: the lineage's target wins over the deployment's, which wins over this machine."""

import pytest
from pydantic import ValidationError

from llm_assets.quantization.hardware import HardwareConfig
from llm_assets.resources.hardware import HardwareResource


def test_the_lineage_wins_over_the_deployment_which_wins_over_this_machine():
    deployed = HardwareResource(target="NVIDIA L4")
    assert deployed.target_of(HardwareConfig(target="H200")).name == "H200"
    assert deployed.target_of(HardwareConfig()).name == "L4"
    unset = HardwareResource()
    assert unset.target_of(HardwareConfig()) == unset.here()


def test_an_unknown_deployment_target_is_refused_with_the_known_names():
    with pytest.raises(ValidationError, match=r"'H2OO' is not a known GPU.*Known: .*RTX A5000"):
        HardwareResource(target="H2OO")
