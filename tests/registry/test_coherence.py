"""Parts of a version that do not belong together are named, with what to make again."""

import pytest

from llm_assets.registry.coherence import Part, PartsMixed, refuse_mixed

WHOLE = {
    "tokenized_dataset": Part("t1", {"chat_dataset": "c9"}),
    "lora_adapter": Part("a1", {"tokenized_dataset": "t1", "hpo_study": "h1"}),
    "merged_model": Part("m1", {"lora_adapter": "a1", "tokenized_dataset": "t1"}),
    "quantized/w4a16": Part("q1", {"merged_model": "m1"}),
    "evaluation": Part("e1", {"merged_model": "m1", "quantized/w4a16": "q1"}),
}


def test_parts_made_of_each_other_pass_whatever_happened_outside_of_them():
    refuse_mixed(WHOLE)
    refuse_mixed({**WHOLE, "evaluation": Part("e2", WHOLE["evaluation"].made_from)})  # evaluated again


@pytest.mark.parametrize(
    ("part", "now", "told"),
    [
        ("tokenized_dataset", "t2", "lora_adapter was made from tokenized_dataset t1, which is now t2; merged_model"),
        ("merged_model", "m2", "quantized/w4a16 was made from merged_model m1, which is now m2; evaluation was"),
        ("quantized/w4a16", "q2", "evaluation was made from quantized/w4a16 q1, which is now q2. Materialize eval"),
    ],
)
def test_what_was_made_from_an_earlier_part_is_named_with_the_first_to_make_again(part, now, told):
    with pytest.raises(PartsMixed, match=told) as refused:
        refuse_mixed({**WHOLE, part: Part(now, WHOLE[part].made_from)})
    outdated = told.partition(" was")[0]
    assert f"Materialize {outdated} and what follows it again" in str(refused.value)
