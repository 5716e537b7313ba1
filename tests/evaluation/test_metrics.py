import pytest

from llm_assets.evaluation.metrics import exact_match, fenced_text, normalised_match, token_f1


def test_exact_match_ignores_only_white_space_at_the_ends():
    assert exact_match(" SELECT 1\n", "SELECT 1") == 1.0
    assert exact_match("select 1", "SELECT 1") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "select  count( * ) from t;",
        "SELECT COUNT(*) FROM t",
        "SELECT COUNT(*)\nFROM t ;",
        "ＳＥＬＥＣＴ count(*) from t",
    ],
)
def test_normalised_match_ignores_case_width_spacing_and_the_closing_semicolon(answer: str):
    assert normalised_match(answer, "SELECT COUNT(*) FROM t;") == 1.0


def test_normalised_match_keeps_comparison_signs_apart():
    assert normalised_match("SELECT a FROM t WHERE a > 1", "SELECT a FROM t WHERE a < 1") == 0.0


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall_counting_repeats():
    # 4 of 5 answered tokens are wanted (one `a` too many), 4 of 6 wanted tokens are answered: 2·4 / (5 + 6)
    assert token_f1("a a b c d", "a b c d e f") == pytest.approx(2 * 4 / 11)
    assert token_f1("a a", "a b") == 0.5


def test_token_f1_of_nothing_against_something_is_zero_and_of_nothing_against_nothing_one():
    assert (token_f1("", "a"), token_f1("a", ""), token_f1("", " ")) == (0.0, 0.0, 1.0)


def test_fenced_text_is_the_first_code_block_even_when_it_was_cut_off():
    assert fenced_text("Here:\n```sql\nSELECT 1;\n```\nDone") == "SELECT 1;"
    assert fenced_text("```sql\nSELECT 1") == "SELECT 1"
    assert fenced_text(" SELECT 1 ") == "SELECT 1"
