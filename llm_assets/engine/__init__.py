from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask

__all__ = ["EngineConfig", "GenerationConfig", "GenerationTask"]
