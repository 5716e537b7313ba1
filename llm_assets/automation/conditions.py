"""When an asset is rebuilt without a person: changed content upstream, and a nightly tick for inference partitions.

Both wait for green blocking checks of every dependency, in whatever run those were evaluated, so a red check stops
everything below it until it turns green.
"""

import dagster as dg


def rebuild_on_change() -> dg.AutomationCondition:
    """Rebuild when an upstream asset's content or this asset's code changed; equal content rebuilds nothing.

    The chain below a change is requested in one tick and runs as one run.
    """
    condition = dg.AutomationCondition
    changed = condition.any_deps_match(condition.data_version_changed() | condition.will_be_requested())
    # the type parameter of dagster's own conditions is invariant, which pyright minds
    changed_or_new_code = (changed | condition.code_version_changed()).since_last_handled()  # pyright: ignore[reportAttributeAccessIssue]
    return (
        changed_or_new_code
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
    ).with_label("rebuild_on_change")


def nightly_backfill(cron: str, timezone: str) -> dg.AutomationCondition:
    """At each cron tick, request the partitions that are missing or whose inputs or model changed since their last run.

    Args:
        cron: Five-field cron expression.
        timezone: IANA name, such as "Europe/Berlin".
    """
    condition = dg.AutomationCondition
    return (
        condition.cron_tick_passed(cron, timezone).since_last_handled()
        & (condition.missing() | condition.any_deps_updated().since_last_handled())
        & ~condition.any_deps_missing()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
    ).with_label("nightly_backfill")
