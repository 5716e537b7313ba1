"""Rows to tokens: ingestion, conversation formats, curation, rendering, packing, and the checks on each."""

from llm_assets.data.curation import CurationConfig
from llm_assets.data.formats import FormatConfig
from llm_assets.data.sources import SourceConfig
from llm_assets.data.splits import SplitConfig
from llm_assets.data.token_config import TokenizationConfig

__all__ = ["CurationConfig", "FormatConfig", "SourceConfig", "SplitConfig", "TokenizationConfig"]
