"""What a person sees of the demo: its lineage and asset pages, in a real browser, served by `dagster dev`.

README's picture is made here, so that it shows what the code does: `LLM_ASSETS_WRITE_SCREENSHOT=1` writes it.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest

from llm_assets.definitions import defs

PROJECT = Path(__file__).parents[2]
MODEL = "sql_demo"
WARNINGS = {"beats_defaults", "variants_keep_quality"}  # amber is a finding here, not a fault
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET_CHROMIUM = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LINEAGE_PAGE = "/asset-groups~" + quote(f'key:"{MODEL}/*"', safe="")
REMEMBERED_BY_THE_UI = {
    "communityNux": "1",  # else a dialog invites to the community
    "asset-graph-direction": json.dumps("vertical"),
}
# The UI draws only the nodes in view, and what they say only where there is room.
ROOM_FOR_DETAILS = {"width": 3100, "height": 1700}
ROOM_FOR_NAMES = {"width": 1700, "height": 900}
GREEN_NODE = "[style*='--minimal-bg: var(--color-background-green)']"
WAIT_SECONDS = 90

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: the UI is not looked at")


@pytest.fixture(scope="module")
def ui(demo, tmp_path_factory) -> Iterator[str]:
    """Address of `dagster dev` over the materialized demo; the whole process group dies with the fixture."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("ui") / "dagster_dev.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "--workspace", PROJECT / "workspace.yaml", "--port", str(port)],
            cwd=demo.directory,
            env={**demo.environment, "LLM_ASSETS_AUTOMATION": "stopped"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            assert _serves(address, server), log.read_text()[-3000:]
            yield address
        finally:
            with suppress(ProcessLookupError):  # it died by itself: the log above says why
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _serves(address: str, server: subprocess.Popen) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/server_info", timeout=2):
                return True
        except OSError:
            time.sleep(0.3)
    return False


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(ui, chromium):
    """A page as returning visitors get it; addresses are relative to the UI."""
    context = chromium.new_context(base_url=ui, viewport={"width": 1500, "height": 1500}, device_scale_factor=2)
    context.set_default_timeout(WAIT_SECONDS * 1000)
    remember = "".join(f"localStorage.setItem({k!r}, {v!r});" for k, v in REMEMBERED_BY_THE_UI.items())
    context.add_init_script(remember)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[bool, set[str]]]:
    """Per node of the lineage: whether it is partitioned, and the names of its checks."""
    graph = defs().resolve_asset_graph()
    return {
        key.path[-1]: (graph.get(key).is_partitioned, {c.name for c in graph.get_check_keys_for_assets({key})})
        for key in graph.get_all_asset_keys()
        if key.path[0] == MODEL
    }


def open_lineage(page, room: dict[str, int], facets: list[str]) -> None:
    """Show the lineage with every group expanded, and these facts on each node."""
    page.set_viewport_size(room)
    page.add_init_script(f"localStorage.setItem('asset-node-facets', {json.dumps(facets)!r})")
    page.goto(LINEAGE_PAGE)
    page.locator("foreignObject", has_text=MODEL).first.wait_for()
    page.keyboard.press("Alt+e")
    page.locator("foreignObject", has_text="token_usage").first.wait_for()


def fault(node: str, text: str, is_partitioned: bool, checks: set[str]) -> str | None:
    """What about a node's text is not as it should be; None when nothing."""
    shown = re.fullmatch(rf"(.*){node}Asset checks(.*)Partitions(.*?)(Materialized.*|\d+ partitions)", text)
    if shown is None:
        return f"shows {text!r}"
    tag, verdicts, partitions, _ = shown.groups()
    passed, of = map(int, re.findall(r"\d+", verdicts)) if checks else (0, 0)
    if tag:
        return f"is tagged {tag}"
    if is_partitioned and partitions != "100% filled":
        return f"has partitions {partitions}"
    if of != len(checks) or passed < of - len(checks & WARNINGS):
        return f"has checks {verdicts}"
    return None


def test_the_lineage_page_shows_every_asset_materialized_current_and_green(page, expected):
    open_lineage(page, ROOM_FOR_DETAILS, ["unsynced-tag", "checks", "status", "partitions"])

    deadline = time.monotonic() + WAIT_SECONDS
    faults = {"": "never looked"}
    while faults and time.monotonic() < deadline:
        texts = page.locator("foreignObject").all_text_contents()
        shown = {node: next((t for t in texts if f"{node}Asset checks" in t), "") for node in expected}
        faults = {node: found for node, text in shown.items() if (found := fault(node, text, *expected[node]))}
        page.wait_for_timeout(300)

    assert len(expected) == 16
    assert faults == {}


def test_only_tolerated_checks_are_amber(page, expected):
    for asset in ("hpo_study", "evaluation"):
        page.goto(f"/assets/{MODEL}/{asset}?view=checks")
        for check in sorted(expected[asset][1] - WARNINGS):
            page.get_by_text(check, exact=True).first.wait_for()
            assert re.search(rf"\b{check}\s+Succeeded\b", page.locator("body").inner_text()), check


@pytest.mark.parametrize(
    ("asset", "picture", "number"),
    [
        ("tokenized_dataset", "lengths", "packs"),
        ("lora_adapter", "loss_curve", "evaluation_loss"),
        ("evaluation", "quality_against_size", "merged_execution_accuracy"),
    ],
)
def test_an_asset_page_shows_its_number_and_its_picture(page, instance, asset, picture, number):
    event = instance.get_latest_materialization_event(dg.AssetKey([MODEL, asset]))
    page.goto(f"/assets/{MODEL}/{asset}")

    def value_of(name: str):
        return page.locator("tr", has=page.get_by_text(name, exact=True)).first.locator("> td").last

    assert float(value_of(number).inner_text()) == event.asset_materialization.metadata[number].value

    value_of(picture).get_by_text("Show Markdown").click()
    drawn = page.locator("img[src^='data:image/png;base64,']")
    drawn.wait_for(state="visible")
    assert drawn.evaluate("image => image.complete && image.naturalWidth") > 300


def test_the_picture_in_the_readme_shows_the_whole_lineage(page, expected, tmp_path):
    wanted = os.environ.get("LLM_ASSETS_WRITE_SCREENSHOT") == "1"
    path = PROJECT / "docs" / "lineage.png" if wanted else tmp_path / "lineage.png"
    open_lineage(page, ROOM_FOR_NAMES, ["checks", "status"])
    page.locator(GREEN_NODE).nth(len(expected) - 1).wait_for()

    nodes = {node: page.locator("foreignObject", has_text=re.compile(rf"^{node}$")).last for node in expected}
    frame = page.locator("foreignObject", has_text=re.compile(rf"^{MODEL}$")).first.bounding_box()
    margin = 8
    clip = {"x": frame["x"] - margin, "y": frame["y"] - margin}
    clip |= {"width": frame["width"] + 2 * margin, "height": frame["height"] + 2 * margin}
    page.screenshot(path=path, clip=clip, style="#zoom-slider-container { visibility: hidden }")

    for node, locator in nodes.items():
        box = locator.bounding_box()
        assert box["x"] > clip["x"] and box["x"] + box["width"] < clip["x"] + clip["width"], node
        assert box["y"] > clip["y"] and box["y"] + box["height"] < clip["y"] + clip["height"], node
    assert path.stat().st_size < 500_000
