"""The tokenizer and the one chat template of a dataset, which every model made from it carries on.

The template is the model's own, ChatML or a given file; it is written once, as `chat_template.jinja`, and no second one
is left inside the configuration that a server could take instead.
"""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

from llm_assets.core import LLMAssetsError
from llm_assets.data.chat_template import CHATML, FILE
from llm_assets.data.rendering import Renderer
from llm_assets.data.token_config import TokenizationConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
RENDERING_VERSION = 2  # raise when the same rows would get other tokens, labels or columns


class TokensMissing(LLMAssetsError):
    """The tokenizer lacks a token that the configuration names."""


def copy_tokenizer(base: Path, tokenizer: Path, config: TokenizationConfig) -> None:
    """Copy the tokenizer's files, and write the template beside them as the only one.

    With another template than the model's own, the template's end-of-turn token becomes the tokenizer's eos.

    Raises:
        TokenizerMissing, TemplateMissing, TemplateInvalid, TemplateUnsupported: the base does not render chats.
        TokensMissing: the template or `pad_token` names tokens that the tokenizer lacks.
    """
    tokenizer.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, tokenizer / name)
    settings_path = tokenizer / "tokenizer_config.json"
    if config.template == "model":
        source = Renderer.from_directory(base).template.source  # its refusals name the base
        if (base / FILE).exists():
            shutil.copyfile(base / FILE, tokenizer / FILE)
        else:
            (tokenizer / FILE).write_text(source)
    else:
        given = CHATML if config.template == "chatml" else Path(config.template).expanduser()
        if not given.is_file():
            raise TokensMissing(
                f"tokenization.template '{config.template}' is no file. Give model, chatml or the path of a template."
            )
        shutil.copyfile(given, tokenizer / FILE)
    settings = json.loads(settings_path.read_text()) if settings_path.exists() else {}
    settings.pop("chat_template", None)
    vocabulary = _added_tokens(tokenizer)
    if config.template == "chatml":
        _require_tokens(("<|im_start|>", "<|im_end|>"), vocabulary, "template: chatml")
    if config.pad_token:
        _require_tokens((config.pad_token,), vocabulary, "pad_token")
        settings["pad_token"] = config.pad_token
    settings_path.write_text(json.dumps(settings, indent=1, ensure_ascii=False))
    if config.template != "model":
        settings["eos_token"] = Renderer.from_directory(tokenizer).end_of_turn_tokens[0]
        settings_path.write_text(json.dumps(settings, indent=1, ensure_ascii=False))


def rendering_digest(tokenizer: Path, config: TokenizationConfig) -> str:
    """SHA-256 of all that decides a row's tokens besides the row: tokenizer, template, settings, and the code.

    The code is this one, and the releases of what runs the tokenizer and the template.
    """
    releases = " ".join(f"{package} {version(package)}" for package in ("tokenizers", "jinja2"))
    settings = f"{config.supervise} {config.max_length_tokens} {config.too_long}"
    code = hashlib.sha256(f"{RENDERING_VERSION} {releases} {settings}".encode())
    for name in ("tokenizer.json", "tokenizer_config.json", FILE):
        code.update(hashlib.sha256((tokenizer / name).read_bytes()).digest())
    return code.hexdigest()


def _added_tokens(tokenizer: Path) -> set[str]:
    stored = json.loads((tokenizer / "tokenizer.json").read_text()) if (tokenizer / "tokenizer.json").exists() else {}
    return {token["content"] for token in stored.get("added_tokens", ())}


def _require_tokens(tokens: tuple[str, ...], vocabulary: set[str], who: str) -> None:
    for token in tokens:
        if token not in vocabulary:
            raise TokensMissing(
                f"tokenization.{who} needs {token}, which is no added token of the base model's tokenizer. "
                "Use template: model, or a template and tokens that the model was trained with."
            )
