"""The study's page in a real browser, in light and dark: charts have a size, nothing fails, nothing is fetched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCHEMES = {"dark": 0, "light": 1}
"""Numbers that the browser gives them (blink::mojom::PreferredColorScheme)."""
# What the page would load is refused, which the console then tells.
POLICY = (
    "<meta http-equiv='Content-Security-Policy' "
    "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">"
)
PROBE = """<script>
const box = element => { const rect = element.getBoundingClientRect(); return [rect.width, rect.height]; };
const ink = document.querySelector("svg text");
const found = {
  charts: [...document.querySelectorAll("figure svg")].map(box),
  texts: [...document.querySelectorAll("svg text")].filter(text => box(text)[0] > 0).length,
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  drawn: getComputedStyle(ink).fill,
  fetched: performance.getEntriesByType("resource").map(entry => entry.name),
  overflow: document.documentElement.scrollWidth - window.innerWidth,
};
document.body.insertAdjacentHTML("beforeend", "<pre id=probe></pre>");
document.getElementById("probe").textContent = JSON.stringify(found);
</script>"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser here to open the page in: install chromium, as Debian's package is named"
)


def opened(page: str, folder: Path, scheme: str) -> tuple[dict[str, Any], list[str]]:
    """What the probe found, and the console's lines."""
    copy = folder / "page.html"
    copy.write_text(page.replace("<head>", f"<head>{POLICY}").replace("</body>", f"{PROBE}</body>"))
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",  # root may not use it
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        "--window-size=500,900",
        "--enable-logging=stderr",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert probe, done.stderr
    return json.loads(unescape(probe[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_opens_whole_and_fetches_nothing(scheme: str, written: Path, tmp_path: Path) -> None:
    found, console = opened(written.read_text(), tmp_path, scheme)
    assert console == []
    assert found["fetched"] == []
    assert len(found["charts"]) == 13
    assert all(width > 300 and height > 150 for width, height in found["charts"])
    assert found["texts"] > 100
    assert found["overflow"] <= 0
    assert found["drawn"] == found["ink"]
    levels = {part: sum(map(int, re.findall(r"\d+", found[part])[:3])) for part in ("paper", "ink")}
    assert (levels["paper"] > levels["ink"]) == (scheme == "light")


def test_the_probe_sees_what_a_page_fetches(written: Path, tmp_path: Path) -> None:
    page = written.read_text().replace("</body>", "<img src='http://127.0.0.1:9/x.png'></body>")
    _, console = opened(page, tmp_path, "light")
    assert any("Content Security Policy" in line for line in console)
