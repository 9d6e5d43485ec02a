"""The embedded dashboard in a real browser: every view, with mouse and keys, light, dark and as wide as a phone."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from gateway.api.openapi import OPERATIONS
from gateway.ledger.rows import RequestRow
from gateway.routing.decision import REJECT_REASONS
from tests.dashboards.browser import CHROMIUM, Page, browser
from tests.dashboards.traffic import play
from tests.gateway.ledger.test_ledger import REQUEST
from tests.served import Served, fake, serve

WEB = Path(__file__).parents[2] / "dashboards" / "web"
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
VIEWS = ("live", "runs", "costs", "slo", "policy")
KEYS = """
tenants:
  acme: {keys: [acme-key-1234567890]}
  boss: {keys: [boss-key-1234567890], operator: true}
"""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@asynccontextmanager
async def shown(folder: Path, more: str = "", key: str = "") -> AsyncIterator[tuple[Served, Page]]:
    workers = {"pico-0": fake("pico", step_s=0.002), "nano-0": fake("nano", step_s=0.004)}
    async with serve(folder, workers=workers, more=more) as served:
        await play(served.http, served.url, key=key)
        for worker in workers.values():
            worker.idle_s = 5.0
        served.gateway.observe_devices()
        served.gateway.record_device_time()
        async with browser(folder) as page:
            await page.look(width=1280, height=800, dark=False)
            yield served, page


async def go(page: Page, view: str) -> None:
    await page.run(f"location.hash = '#/{view}'")
    await page.until(f"document.title.toLowerCase().startsWith('{view}') && document.querySelector('.stamp')?.textContent")


async def open_run(page: Page) -> None:
    await go(page, "runs")
    await page.click("#runs-list tbody tr a")
    await page.until("document.querySelector('.waterfall .why')")
    await page.click(".waterfall .why")
    await page.until("document.querySelector('.detail:not([hidden]) table')")


async def faults(page: Page) -> list[str]:
    """What axe-core finds serious or critical."""
    await page.run(AXE.read_text())
    script = "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r.violations.map(v => ({id: v.id, impact: v.impact, nodes: v.nodes.map(n => n.html + ' ' + n.failureSummary)}))))"  # noqa: E501
    found = json.loads(await page.run(script))
    return [str(one) for one in found if one["impact"] in ("serious", "critical")]


@needs_chromium
@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)], ids=["light", "dark", "phone", "phone-dark"]
)
async def test_every_view_opens_without_an_error(tmp_path: Path, width: int, dark: bool) -> None:
    async with shown(tmp_path) as (served, page):
        await page.look(width=width, height=844, dark=dark)
        await page.open(f"{served.url}/dashboard")
        for view in (*VIEWS, "run"):
            await (open_run(page) if view == "run" else go(page, view))
            assert not await page.run("document.documentElement.scrollWidth > innerWidth"), f"{view} scrolls sideways"
            assert await faults(page) == [], view
        assert page.problems == []
        assert {urlsplit(address).netloc for address in page.addresses} <= {urlsplit(served.url).netloc, ""}


@needs_chromium
async def test_a_run_leads_to_its_decision_by_keys_alone(tmp_path: Path) -> None:
    async with shown(tmp_path) as (served, page):
        await page.open(f"{served.url}/dashboard#/runs")
        await page.until("document.querySelector('#runs-list tbody a')")
        assert await page.run("document.querySelectorAll('#runs-list tbody tr').length") == 4
        await page.run("document.querySelector('#runs-filter').focus()")
        await page.write("agent-2")
        await page.until("document.querySelectorAll('#runs-list tbody tr').length == 1")
        for _ in range(30):
            await page.key("Tab", 9)
            if await page.run("document.activeElement.matches('tbody a')"):
                break
        await page.key("Enter", 13)
        await page.until("document.querySelector('.waterfall .why')")
        assert await page.run("document.querySelectorAll('.waterfall .why').length") == 5
        assert await page.run("document.querySelectorAll('.waterfall .pause').length") >= 4
        await page.run("document.querySelector('.waterfall .why').focus()")
        await page.key("Enter", 13)
        await page.until("document.querySelector('.detail:not([hidden]) table')")
        said = await page.run("document.querySelector('.detail').innerText")
        assert "chosen" in said and "Why not" in said
        why_not = "[...document.querySelectorAll('.detail tbody tr:not(:first-child) td:last-child')].map(td => td.innerText)"
        assert set(await page.run(why_not)) <= set(REJECT_REASONS.values())
        assert await page.run(f"{why_not}.length")
        assert await page.run("document.querySelector('.waterfall .why').getAttribute('aria-expanded')") == "true"


@needs_chromium
async def test_notable_request_links_to_its_turn(tmp_path: Path) -> None:
    async with shown(tmp_path) as (served, page):
        turns = [row for row in served.ledger.rows if isinstance(row, RequestRow) and row.run == "agent-1"]
        served.ledger.record(msgspec.structs.replace(turns[2], at=turns[2].at + 1e-6, request="late", slo_met=False))
        await page.open(f"{served.url}/dashboard#/live")
        await page.click("#open-slo_missed-late")
        await page.until("document.querySelector('.waterfall tr.wanted')")
        assert await page.run("decodeURIComponent(location.hash)") == "#/run/development/agent-1/late"
        wanted = "document.querySelector('.waterfall tr.wanted')"
        assert await page.run(f"{wanted}.firstElementChild.textContent") == "4"
        assert await page.run(f"{wanted}.innerText.includes('missed') && document.querySelectorAll('tr.wanted').length === 1")
        await page.until(f"{wanted}.nextElementSibling.matches('.detail:not([hidden])')")
        await page.until(f"{wanted}.nextElementSibling.querySelector('table')")
        assert await page.run("document.activeElement.closest('tr').matches('.wanted')")
        assert page.problems == []


@needs_chromium
async def test_costs_view_shows_every_dimension_and_adds_up(tmp_path: Path) -> None:
    async with shown(tmp_path) as (served, page):
        await page.open(f"{served.url}/dashboard#/costs")
        for by, first in (("model", "nano"), ("tenant", "development"), ("run", "agent-"), ("day", "20")):
            await page.until(f"document.querySelector('input[name=by][value={by}]')")
            await page.run(f"document.querySelector('input[name=by][value={by}]').click()")
            await page.until(f"document.querySelector('section[aria-label=Charged] tbody')?.innerText.includes('{first}')")
        assert "idle" in (await page.run("document.body.innerText")).lower()


@needs_chromium
async def test_key_prompt_appears_and_the_key_stays_in_the_tab(tmp_path: Path) -> None:
    async with shown(tmp_path, KEYS, "acme-key-1234567890") as (served, page):
        await page.open(f"{served.url}/dashboard#/runs")
        await page.until("document.querySelector('#key')?.open")
        assert await faults(page) == []
        await page.write("wrong")
        await page.key("Enter", 13)
        await page.until("document.querySelector('#key').open && document.querySelector('#key-problem').textContent")
        await page.write("acme-key-1234567890")
        await page.key("Enter", 13)
        await page.until("document.querySelectorAll('#runs-list tbody tr').length == 4")
        assert await page.run("document.querySelector('#who').textContent") == "acme"
        assert await page.run("sessionStorage.getItem('headway.key') !== null && localStorage.length === 0")
        await page.run("location.hash = '#/policy'")
        await page.until("document.querySelector('.fault')?.textContent.includes('operator')")


async def test_a_tenant_sees_its_own_and_an_operator_all(tmp_path: Path) -> None:
    async with serve(tmp_path, more=KEYS) as served:
        await play(served.http, served.url, runs=1, turns=1, key="acme-key-1234567890")
        await play(served.http, served.url, runs=2, turns=1, key="boss-key-1234567890")

        async def read(path: str, tenant: str) -> tuple[int, dict[str, object]]:
            headers = {"authorization": f"Bearer {tenant}-key-1234567890"}
            async with served.http.get(f"{served.url}/v1/headway/{path}", headers=headers) as answer:
                return answer.status, await answer.json()

        for path in ("whoami", "live", "history", "runs/agent-0/turns", "costs", "slo", "summary", "policy"):
            async with served.http.get(f"{served.url}/v1/headway/{path}") as answer:
                assert answer.status == 401, path
        assert [len((await read("history", name))[1]["runs"]) for name in ("acme", "boss")] == [1, 3]  # type: ignore[arg-type]
        theirs = (await read("runs/agent-0/turns", "boss"))[1]["turns"][0]["decision"]  # type: ignore[index]
        ours = (await read("runs/agent-0/turns", "acme"))[1]["turns"][0]["decision"]  # type: ignore[index]
        assert theirs != ours
        assert (await read(f"decisions/{theirs}", "acme"))[0] == 404
        assert (await read(f"decisions/{ours}", "boss"))[0] == (await read(f"decisions/{ours}", "acme"))[0] == 200
        assert (await read("runs/agent-1/turns?tenant=boss", "acme"))[0] == 404
        assert (await read("runs/agent-0/turns?tenant=acme", "boss"))[0] == 200
        assert (await read("costs?by=tenant", "acme"))[1]["idle"] == []
        assert {line["key"] for line in (await read("costs?by=tenant", "boss"))[1]["lines"]} == {"acme", "boss"}  # type: ignore[attr-defined]
        assert (await read("policy", "acme"))[0] == 403
        assert "boss-key" not in str((await read("policy", "boss"))[1])
        assert (await read("costs?by=colour", "boss"))[0] == (await read("history?hours=-1", "boss"))[0] == 400


async def test_summary_lists_latest_failures_and_highest_costs(tmp_path: Path) -> None:
    async with serve(tmp_path, more=KEYS) as served:
        now = time.time()

        def told(
            request: str, ago_s: float, usd: float, slo: str = "interactive", tenant: str = "acme", **more: object
        ) -> None:
            at = now - ago_s
            served.ledger.record(
                msgspec.structs.replace(REQUEST, at=at, request=request, usd=usd, slo=slo, tenant=tenant, run="r", **more)
            )

        for number in range(1, 9):
            told(f"late-{number}", 10.0 + number, 1e-6, slo="batch", slo_met=number > 7)
        told("lost", 2.0, 0.0, outcome="failed", status="worker_lost", slo_counted=False, slo_met=False)
        told("dear", 3.0, 9e-6)
        told("cheap", 4.0, 2e-6)
        told("theirs", 1.0, 5e-6, tenant="boss")
        told("yesterday", 86_000.0, 8e-6, slo_met=False)

        async def read(tenant: str, hours: str) -> tuple[int, dict[str, Any]]:
            headers = {"authorization": f"Bearer {tenant}-key-1234567890"}
            url = f"{served.url}/v1/headway/summary?hours={hours}"
            async with served.http.get(url, headers=headers) as answer:
                return answer.status, await answer.json()

        status, ours = await read("acme", "1")
        assert status == 200
        assert (ours["totals"]["runs"], ours["totals"]["requests"]) == (1, 11)
        assert ours["totals"]["usd"] == pytest.approx(19e-6)
        assert [(one["slo"], one["met"], one["counted"]) for one in ours["classes"]] == [("batch", 1, 8), ("interactive", 2, 2)]
        assert [one["burn"] for one in ours["classes"]] == pytest.approx([100 * 7 / 8, 0.0])
        opened = [(one["why"], one["request"]) for one in ours["notable"]]
        assert opened[:6] == [("failed", "lost"), *(("slo_missed", f"late-{number}") for number in range(1, 6))]
        assert opened[6:8] == [("costliest", "dear"), ("costliest", "cheap")] and len(opened) == 9
        day, everybody = (await read("acme", "24"))[1], (await read("boss", "1"))[1]
        assert [one["request"] for one in day["notable"] if one["why"] == "costliest"][:2] == ["dear", "yesterday"]
        assert everybody["totals"]["runs"] == 2
        assert [one["request"] for one in everybody["notable"] if one["why"] == "costliest"] == ["dear", "theirs", "cheap"]
        assert (await read("acme", "0"))[0] == (await read("acme", "soon"))[0] == 400
        assert (await read("nobody", "1"))[0] == 401


async def test_the_files_are_served_under_a_strict_policy_and_nothing_else_is(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        for name in ("", "/", "/app.js", "/style.css", "/vendor/uplot/uPlot.esm.js"):
            async with served.http.get(f"{served.url}/dashboard{name}") as answer:
                assert answer.status == 200, name
                assert "default-src 'none'" in answer.headers["content-security-policy"]
                assert "unsafe" not in answer.headers["content-security-policy"]
                etag = answer.headers["etag"]
            async with served.http.get(f"{served.url}/dashboard{name}", headers={"if-none-match": etag}) as answer:
                assert answer.status == 304
        for name in ("/../../policies/default.yaml", "/%2e%2e/%2e%2e/pyproject.toml", "/nothing.js", "/vendor"):
            async with served.http.get(f"{served.url}/dashboard{name}") as answer:
                assert answer.status == 404, name


def test_every_endpoint_of_the_dashboard_is_one_of_the_api() -> None:
    paths = re.findall(r"[\"`](/[a-z].*)[\"`],", (WEB / "api.js").read_text())
    assert len(paths) > 5
    assert {re.sub(r"\$?\{.*\}", "{}", path) for path in paths} <= {re.sub(r"\{.*\}", "{}", one.path) for one in OPERATIONS}


def test_dashboard_files_load_nothing_from_other_hosts() -> None:
    for file in WEB.rglob("*"):
        if file.is_file() and "vendor" not in file.parts and file.suffix in (".html", ".js", ".css"):
            assert "//" not in file.read_text().replace("// ", "").replace("http://www.w3.org", ""), file
    page = (WEB / "index.html").read_text()
    assert page.count("<script") == page.count('<script type="module" src="/dashboard/')
    assert "style=" not in page and "onclick=" not in page


async def test_reports_of_an_empty_ledger_are_empty(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        await asyncio.sleep(0)
        for path in ("live", "runs", "costs", "slo", "summary", "policy", "whoami"):
            async with served.http.get(f"{served.url}/v1/headway/{path}") as answer:
                assert answer.status == 200, await answer.text()
