from llm_assets.inference.config import InferenceConfig

__all__ = ["InferenceConfig"]
