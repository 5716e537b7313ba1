"""What `import llm_assets` offers, and what it costs."""

import subprocess
import sys

import pytest

import llm_assets


def test_importing_the_package_loads_nothing_of_it():
    loaded = "[name for name in sys.modules if name.startswith(('llm_assets.', 'dagster', 'pydantic', 'torch'))]"
    code = f"import sys, llm_assets; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_calling_from_a_notebook_imports_nothing_heavy():
    heavy = ["torch", "transformers", "peft", "mlflow", "datasets", "optuna", "vllm", "kubernetes"]
    code = f"import sys\nfrom llm_assets import *\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_what_it_says():
    for name in llm_assets.__all__:
        assert getattr(llm_assets, name).__name__ == name
    assert set(llm_assets.__all__) == set(dir(llm_assets))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'run_fine_tunin'"):
        llm_assets.run_fine_tunin  # noqa: B018
