import json

import pytest

from llm_assets.demo import base_model
from llm_assets.demo.base_tokenizer import END, PAD, START, VOCABULARY_SIZE, chat_prompt
from llm_assets.demo.text_to_sql import example


def quiet(_: str) -> None:
    """Swallow progress."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Three builds of three steps each: seed 0 twice, seed 1 once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EXAMPLES": 300, "STEPS": 3, "TOKENS_PER_STEP": 512}.items():
            patch.setattr(base_model, name, value)
        directories = []
        for name, seed in (("first", 0), ("second", 0), ("other", 1)):
            directories.append(tmp_path_factory.mktemp("base") / name)
            base_model.build(directories[-1], seed, quiet)
    return directories


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_same_seed_gives_the_same_bytes(built):
    first, second, _ = built
    assert contents(first) == contents(second)


def test_another_seed_gives_another_model(built):
    first, _, other = built
    assert contents(first)["model.safetensors"] != contents(other)["model.safetensors"]


def test_building_leaves_the_callers_torch_settings_alone(tmp_path):
    import torch

    torch.manual_seed(5)
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state())
    with base_model._one_deterministic_thread():
        torch.rand(1)
    after = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_the_directory_stops_at_the_end_of_a_turn_and_pads_with_another_token(built):
    generation = json.loads((built[0] / "generation_config.json").read_text())
    config = json.loads((built[0] / "config.json").read_text())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built[0])
    end, pad, start = tokenizer.convert_tokens_to_ids([END, PAD, START])
    assert generation["eos_token_id"] == [end]
    assert generation["pad_token_id"] == pad
    assert len({end, pad, start}) == 3
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert config["vocab_size"] == VOCABULARY_SIZE >= len(tokenizer)


def test_the_chat_template_writes_exactly_what_the_base_was_trained_on(built):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built[0])
    user, answer = base_model.dialogue(3, 0)
    ids, prompt_tokens = base_model._encode(tokenizer, [(user, answer)])[0]
    asked = [{"role": "user", "content": user}]
    rendered = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert rendered == ids[:prompt_tokens]
    whole = tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": answer}], return_assistant_tokens_mask=True, return_dict=True
    )
    supervised = [token for token, mark in zip(whole["input_ids"], whole["assistant_masks"], strict=True) if mark]
    assert supervised == ids[prompt_tokens:]


def test_digits_are_single_tokens_and_text_survives_a_round_trip(built):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built[0])
    assert tokenizer.tokenize("over 597;")[-4:] == ["5", "9", "7", ";"]
    made = example(0)
    text = f"{made.schema}\n\n{made.question} {made.sql} {made.pipeline}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_padding_on_the_right_changes_no_loss(built):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built[0])
    model = AutoModelForCausalLM.from_pretrained(built[0], dtype=torch.float32, attn_implementation="eager")
    rows = base_model._encode(tokenizer, [base_model.dialogue(index, 0) for index in range(6)])
    with torch.no_grad():
        alone = sum(base_model._summed_answer_loss(model, *base_model._padded([row])).item() for row in rows)
        together = base_model._summed_answer_loss(model, *base_model._padded(rows)).item()
    assert together == pytest.approx(alone, rel=1e-2)


def test_pre_training_holds_both_kinds_of_dialogue():
    answers = [base_model.dialogue(index, 0)[1] for index in range(200)]
    formatted = sum(answer.startswith("SELECT") for answer in answers)
    assert 0.3 * len(answers) < formatted < 0.5 * len(answers)
    assert all(answer.startswith(("SELECT", "from ")) for answer in answers)


def test_the_prompt_is_chatml_with_an_open_assistant_turn():
    assert chat_prompt("hello") == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
