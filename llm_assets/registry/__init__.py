from llm_assets.registry.config import RegistryConfig

__all__ = ["RegistryConfig"]
