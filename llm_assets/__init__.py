"""llm_assets: a Dagster asset graph that fine-tunes, quantizes, registers, evaluates and runs your own LLM."""
