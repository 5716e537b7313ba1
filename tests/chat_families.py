"""Model families as the tests speak of them: a template, a tokenizer, and by hand what every piece of a chat is.

`pieces` is the reference: it writes a conversation as text that is learned and text that is not, without any template.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_SPECIALS = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|pad|>",
    "<|eom_id|>",
)
GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
MISTRAL_SPECIALS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
)
DEEPSEEK_SPECIALS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<pad>")
COMMAND_SPECIALS = (
    *("<PAD>", "<BOS_TOKEN>", "<|START_OF_TURN|>", "<|END_OF_TURN|>", "<|USER|>", "<|CHATBOT|>", "<|SYSTEM|>"),
    *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)


def template(name: str) -> str:
    """A chat template in the manner of a model family, shortened to what decides token ids."""
    return (Path(__file__).parent / "data" / "templates" / f"{name}.jinja").read_text()


@dataclass(frozen=True)
class Family:
    """A template, its tokenizer, and the text around every message.

    Attributes:
        template: File name.
        specials: Special tokens of the tokenizer.
        named: `bos_token` and the like.
        words: Kind of tokenizer, as `make_tokenizer` takes it.
        start: Before the first message.
        system: Around a system message; None where the family takes none, or puts it elsewhere.
        user: Around a question.
        header: Before an answer, not learned.
        lead: What the template writes of the answer itself, learned.
        end: After an answer, learned.
        after: After that, not learned.
        final: At the end of the text.
        trim: Which messages are trimmed: none, others (than answers), answers, or all.
        last_lead: As `lead`, for the last answer.
    """

    template: str
    specials: tuple[str, ...]
    named: dict[str, str]
    words: str = "byte_level"
    start: str = ""
    system: tuple[str, str] | None = None
    user: tuple[str, str] = ("", "")
    header: str = ""
    lead: str = ""
    end: str = ""
    after: str = ""
    final: str = ""
    trim: str = "none"
    last_lead: str | None = None
    plain_added: tuple[str, ...] = field(default=())

    def pieces(self, messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
        """The conversation as `(text, whether it is learned)`."""
        pieces = [(self.start, False)]
        for n, turn in enumerate(messages):
            kind = "answers" if turn["role"] == "assistant" else "others"
            content = turn["content"].strip() if self.trim in (kind, "all") else turn["content"]
            if turn["role"] == "assistant":
                last = n == len(messages) - 1 and self.last_lead is not None
                lead = self.last_lead if last and self.last_lead is not None else self.lead
                pieces += [(self.header, False), (lead + content + self.end, True), (self.after, False)]
            else:
                around = self.system if turn["role"] == "system" else self.user
                assert around is not None
                pieces.append((around[0] + content + around[1], False))
        return [*pieces, (self.final, False)]


CHATML = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
LLAMA = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
MISTRAL = {"bos_token": "<s>", "eos_token": "</s>"}
AS_CHATML: dict[str, Any] = {
    "system": ("<|im_start|>system\n", "<|im_end|>\n"),
    "user": ("<|im_start|>user\n", "<|im_end|>\n"),
    "header": "<|im_start|>assistant\n",
    "end": "<|im_end|>",
    "after": "\n",
}
AS_LLAMA: dict[str, Any] = {
    "user": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "header": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "end": "<|eot_id|>",
    "trim": "all",
}
AS_GEMMA: dict[str, Any] = {
    "start": "<bos>",
    "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
    "header": "<start_of_turn>model\n",
    "end": "<end_of_turn>",
    "after": "\n",
    "trim": "all",
}
DATE = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
)
FAMILIES = {
    "chatml": Family("chatml", CHATML_SPECIALS, CHATML, **AS_CHATML),
    "chatml_gpt2": Family("chatml", CHATML_SPECIALS, CHATML, "gpt2", **AS_CHATML),
    "chatml_unigram": Family("chatml", CHATML_SPECIALS, CHATML, "unigram", **AS_CHATML),
    "chatml_wide_tags": Family("chatml_wide_tags", CHATML_SPECIALS, CHATML, **AS_CHATML),
    "chatml_narrow_tags": Family("chatml_narrow_tags", CHATML_SPECIALS, CHATML, **AS_CHATML),
    "qwen_3": Family(
        "qwen_3_thinking",
        CHATML_SPECIALS,
        CHATML,
        **AS_CHATML,
        last_lead="<think>\n\n</think>\n\n",
        plain_added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "llama_3": Family("llama_3", LLAMA_SPECIALS, LLAMA, start=f"{DATE}26 Jul 2024\n\n<|eot_id|>", **AS_LLAMA),
    "gemma_2": Family("gemma", GEMMA_SPECIALS, GEMMA, "metaspace", **AS_GEMMA),
    "gemma_3": Family("gemma_3", GEMMA_SPECIALS, GEMMA, "metaspace", **AS_GEMMA),
    "phi_3": Family(
        "phi_3",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        {"eos_token": "<|endoftext|>"},
        system=("<|system|>\n", "<|end|>\n"),
        user=("<|user|>\n", "<|end|>\n"),
        header="<|assistant|>\n",
        end="<|end|>",
        after="\n",
        final="<|endoftext|>",
    ),
    "phi_4": Family(
        "phi_4",
        (*CHATML_SPECIALS, "<|im_sep|>"),
        CHATML,
        "gpt2",
        system=("<|im_start|>system<|im_sep|>", "<|im_end|>"),
        user=("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        header="<|im_start|>assistant<|im_sep|>",
        end="<|im_end|>",
    ),
    "mistral": Family(
        "mistral_tools",
        MISTRAL_SPECIALS,
        MISTRAL,
        "metaspace",
        start="<s>",
        user=("[INST] ", "[/INST]"),
        lead=" ",
        end="</s>",
        trim="answers",
    ),
    "mistral_nemo": Family(
        "mistral_nemo", MISTRAL_SPECIALS, MISTRAL, start="<s>", user=("[INST]", "[/INST]"), end="</s>"
    ),
    "llama_2": Family(
        "llama_2",
        ("<unk>", "<s>", "</s>"),
        MISTRAL,
        "metaspace",
        user=("<s>[INST] ", " [/INST]"),
        lead=" ",
        end=" </s>",
        trim="all",
    ),
    "zephyr": Family(
        "zephyr",
        ("<unk>", "<s>", "</s>"),
        MISTRAL,
        "metaspace",
        system=("<|system|>\n", "</s>\n"),
        user=("<|user|>\n", "</s>\n"),
        header="<|assistant|>\n",
        end="</s>",
        after="\n",
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        DEEPSEEK_SPECIALS,
        {"bos_token": DEEPSEEK_SPECIALS[0], "eos_token": DEEPSEEK_SPECIALS[1]},
        start=DEEPSEEK_SPECIALS[0],
        user=("<｜User｜>", ""),
        header="<｜Assistant｜>",
        end=DEEPSEEK_SPECIALS[1],
        system=("", ""),
    ),
    "command_r": Family(
        "command_r",
        COMMAND_SPECIALS,
        {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN|>"},
        start="<BOS_TOKEN>",
        system=("<|START_OF_TURN|><|SYSTEM|>", "<|END_OF_TURN|>"),
        user=("<|START_OF_TURN|><|USER|>", "<|END_OF_TURN|>"),
        header="<|START_OF_TURN|><|CHATBOT|><|START_RESPONSE|>",
        end="<|END_RESPONSE|><|END_OF_TURN|>",
        trim="others",
    ),
}
