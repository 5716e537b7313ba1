"""Small tokenizers with the chat templates of well-known model families, as Hugging Face directories."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"  # real public rows, where a checkout has them beside it
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "user assistant system model tool Hello there, how are you?\n\nI am fine.\n\n\nGood.",
    "What is the capital of France? Paris. And of Italy? Rome, I think.\n",
    "The weather is sunny. [INST] [/INST] Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024\n\n",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}\n\n',
]


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a tokenizer and save it with a template.

    `words` is byte_level (as Llama 3 and Qwen), gpt2 (byte-level with GPT-2's own expression), metaspace (▁ and BPE
    over the whole text, as Mistral) or unigram (▁ and the likeliest pieces, as XLNet).
    """

    def make(
        template: str | None,
        specials: Sequence[str],
        words: str = "byte_level",
        plain_added: Sequence[str] = (),
        **named: str,
    ) -> Path:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        if words == "byte_level":
            bpe = Tokenizer(models.BPE())
            bpe.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(SPLIT), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            bpe.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        elif words == "gpt2":
            bpe = Tokenizer(models.BPE())
            bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            bpe.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        elif words == "unigram":
            bpe = Tokenizer(models.Unigram())
            bpe.pre_tokenizer = pre_tokenizers.Metaspace()
            bpe.decoder = decoders.Metaspace()
            alphabet = sorted(set("".join(CORPUS)) | {"▁"} | {chr(n) for n in range(32, 127)})
        else:
            bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
            bpe.pre_tokenizer = pre_tokenizers.Metaspace()
            bpe.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
            alphabet = sorted(set("".join(CORPUS)) | {"▁"} | {chr(n) for n in range(32, 127)})
        if words == "unigram":
            trainer: Any = trainers.UnigramTrainer(
                vocab_size=400, special_tokens=["<unk>", *specials], unk_token="<unk>", initial_alphabet=alphabet
            )
        else:
            trainer = trainers.BpeTrainer(
                vocab_size=600, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
            )
        bpe.train_from_iterator(CORPUS * 20, trainer)
        if words == "metaspace":  # as converted SentencePiece models have it: learned by words, applied to the whole
            bpe.pre_tokenizer = None
            bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain_added])
        directory = tmp_path_factory.mktemp("tokenizer")
        bpe.save(str(directory / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        if template:
            (directory / "chat_template.jinja").write_text(template)
        return directory

    return make


@pytest.fixture
def real_rows() -> Callable[[str], Path]:
    """Path of a public data file beside the checkout; skips where there is none."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"{name} is not at {DATA}; it is read only where a checkout has it")
        return DATA / name

    return find
