"""The verdicts on a scoreboard: does the tuned model beat its base, and does each variant keep what was gained."""

from collections.abc import Mapping
from typing import Any

from llm_assets.core import CheckResult
from llm_assets.evaluation.scoreboard import BASE, MERGED


def beats_base(scoreboard: Mapping[str, Any], min_improvement: float) -> CheckResult:
    """Pass when the merged model is better by `min_improvement` and the interval of the difference lies above 0."""
    primary, gain = scoreboard["primary"], scoreboard["improvement"][MERGED]
    if gain["value"] is None:
        return CheckResult(
            passed=False,
            summary=f"No held-out row says anything about {primary}. Look at execution_error in answers.parquet.",
            numbers={"rows": gain["rows"]},
        )
    base, merged = (scoreboard["candidates"][name][primary] for name in (BASE, MERGED))
    passed = gain["value"] >= min_improvement and gain["low"] > 0
    return CheckResult(
        passed=passed,
        summary=(
            f"{primary}: base {base:.1%}, merged {merged:.1%}, difference {gain['value']:+.1%} "
            f"(95 % interval {gain['low']:+.1%} to {gain['high']:+.1%} on {gain['rows']} rows; "
            f"{max(min_improvement, 0):.1%} and an interval above 0 wanted)."
        ),
        numbers={"improvement": gain["value"], "improvement_low": gain["low"], "improvement_high": gain["high"]},
    )


def variants_keep_quality(scoreboard: Mapping[str, Any], min_recovery: float) -> CheckResult:
    """Warn about variants that keep less than `min_recovery` of the merged model's primary metric.

    The lineage blocks on each variant's own recovery check, which compares token by token; this one is what users see.
    """
    recoveries = scoreboard["recovery"]
    rows = [
        {
            "variant": name,
            "recovery": _percent(r["value"]),
            "interval": f"{_percent(r['low'])} to {_percent(r['high'])}",
        }
        for name, r in recoveries.items()
    ]
    lost = [name for name, r in recoveries.items() if r["value"] is None or r["value"] < min_recovery]
    state = f"Below {min_recovery:.1%} of the merged model: {', '.join(lost)}." if lost else "Every variant keeps up."
    return CheckResult(
        passed=not lost,
        summary=f"{state} Metric {scoreboard['primary']}, {len(recoveries)} variants.",
        numbers={f"recovery_{name}": r["value"] for name, r in recoveries.items() if r["value"] is not None},
        rows=rows,
        warn_only=True,
    )


def _percent(share: float | None) -> str:
    return "undefined" if share is None else f"{share:.1%}"
