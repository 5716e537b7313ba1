"""What is registered, told without reading a weight."""

import pytest

from llm_assets import get_model_info
from llm_assets.registry.versions import VersionUnknown


def test_a_name_is_enough_to_find_the_champion(registered):
    info = get_model_info(registered)
    assert (info.name, info.version, info.aliases) == (registered, "1", ("champion",))
    assert info.generation["max_new_tokens"] == 7
    assert info.variants == ("merged", "gguf_q8_0")
    assert info.scores["merged"]["exact_match"] == 0.9


def test_a_version_or_an_alias_may_be_asked_for(registered):
    assert get_model_info(registered, 1) == get_model_info(registered, "champion")


def test_the_page_tells_what_a_user_needs(registered, capsys):
    get_model_info(registered).display()
    page = capsys.readouterr().out
    for told in (
        "prod.sql.orders version 1 (champion)",
        "LlamaForCausalLM",
        "Qwen/Qwen2.5-3B-Instruct",
        "20 held-out rows",
        "exact match",
        "max_new_tokens",
        "evaluation loss",
        "run-7",
        "merged_model fingerprint",
    ):
        assert told in page, told


def test_a_notebook_gets_the_same_as_html(registered):
    info = get_model_info(registered)
    html = info._repr_html_()
    assert html.count("<table>") >= 5
    assert "LlamaForCausalLM" in html and "LlamaForCausalLM" in repr(info)


def test_cells_are_escaped_in_html():
    from llm_assets.interface.display import Page, Panel

    assert "&lt;b&gt;" in Page("x", [Panel("t", [("a", "<b>")])]).html()


def test_an_unknown_name_lists_what_is_registered(registered):
    with pytest.raises(VersionUnknown, match=r"No model 'order'.*Registered: prod.sql.orders"):
        get_model_info("order")
    with pytest.raises(VersionUnknown, match=r"no version or alias '9'.*Versions: \[1\]"):
        get_model_info(registered, 9)
