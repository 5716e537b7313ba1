from llm_assets.evaluation.config import EvaluationConfig

__all__ = ["EvaluationConfig"]
