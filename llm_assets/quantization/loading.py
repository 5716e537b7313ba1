"""Whether a variant opens and answers in the engine it is made for, before anything downstream relies on it.

Where this machine's engine cannot run the scheme, transformers opens the checkpoint instead and the verdict says so:
the file is sound, the engine is unproven. That state is in the numbers (`opened_with`), never only in a log.
"""

import itertools

import pyarrow as pa

from llm_assets.core import CheckResult


def loads(reference: pa.Table, answers: pa.Table, opened_with: str, unproven: str = "") -> CheckResult:
    """Pass when every prompt was answered without error, and with text where the merged model gives text.

    Args:
        reference: Greedy answers of the merged model: `row_id`, `completion`.
        answers: Answers of the variant in any order: `row_id`, `completion`, `finish_reason`, `error`.
        opened_with: vllm, llama_cpp or transformers.
        unproven: Why the scheme's own engine did not open it here; empty when it did.

    Returns:
        Numbers: opened_with, opened_by_its_engine, prompts, answered, agreement (share of prompts answered with the
        merged model's very text), common_prefix (mean share of the merged model's text before the first difference).
        Rows: a few answers beside the merged model's.
    """
    expected = dict(zip(reference["row_id"].to_pylist(), reference["completion"].to_pylist(), strict=True))
    given = {row["row_id"]: row for row in answers.select(["row_id", "completion", "error"]).to_pylist()}
    texts = {row_id: given.get(row_id, {}).get("completion") or "" for row_id in expected}
    missing = [row_id for row_id in expected if row_id not in given]
    errors = [
        f"{row_id}: {given[row_id]['error']}" for row_id in expected if row_id in given and given[row_id]["error"]
    ]
    empty = [
        row_id for row_id in expected if row_id in given and expected[row_id].strip() and not texts[row_id].strip()
    ]
    agreement = sum(texts[row_id] == expected[row_id] for row_id in expected) / len(expected)
    problem = _first_problem(len(expected), missing, errors, empty)
    engine = f"opened with {opened_with}" + (f" because {unproven}; run it on its GPU to prove it" if unproven else "")
    return CheckResult(
        passed=not problem,
        summary=f"{problem or 'The variant answers'}: {engine}; {agreement:.0%} of {len(expected)} prompts as merged.",
        numbers={
            "opened_with": opened_with,
            "opened_by_its_engine": not unproven,
            "prompts": len(expected),
            "answered": len(expected) - len(missing) - len(errors) - len(empty),
            "agreement": agreement,
            "common_prefix": sum(_common_share(expected[row], texts[row]) for row in expected) / len(expected),
        },
        rows=[
            {
                "row_id": row,
                "merged": expected[row][:200],
                "variant": texts[row][:200],
                "same": expected[row] == texts[row],
            }
            for row in list(expected)[:5]
        ],
    )


def _first_problem(prompts: int, missing: list[str], errors: list[str], empty: list[str]) -> str:
    if missing:
        return f"{len(missing)} of {prompts} prompts have no answer, first {missing[0]}"
    if errors:
        return f"{len(errors)} of {prompts} prompts failed, first {errors[0]}"
    if empty:
        return f"{len(empty)} of {prompts} answers are empty where the merged model's are not, first {empty[0]}"
    return ""


def _common_share(expected: str, given: str) -> float:
    if not expected:
        return float(not given)
    pairs = zip(expected, given, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) / len(expected)
