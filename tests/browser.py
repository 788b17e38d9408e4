"""The built book in a real browser: every page visited, and what is wrong with it."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> "
    "**bold** [link](javascript:alert(1)) {raw} `code` $x$ \x1b[31mred\x1b[0m --> ]]> </textarea>"
)
"""What a prompt or a completion may hold: to be shown, and nothing else."""


def pages_of(html: Path) -> list[str]:
    """The pages of a built book, by their paths below ``html``."""
    static = html / "_static"
    return [
        page.relative_to(html).as_posix()
        for page in sorted(html.rglob("*.html"))
        if static not in page.parents
    ]


CONTRASTS = """
const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
const luminance = colour => {
    const [r, g, b] = channels(colour).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const drawn = [...document.querySelectorAll('.r2d-figure svg text')].filter(text =>
    [text.getAttribute('fill'), text.style.fill].some(fill => /^currentcolor$/i.test(fill)));
const found = {};
for (const theme of ['light', 'dark']) {
    document.documentElement.dataset.theme = theme;
    const page = luminance(getComputedStyle(document.body).backgroundColor);
    found[theme] = drawn.map(text => {
        const ink = luminance(getComputedStyle(text).fill);
        return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
    });
}
return found;
"""
"""Of every text in a figure against the page, in both themes (WCAG 2.2's contrast ratio)."""


def visit_every_page(html: Path, home: Path) -> dict[str, str]:
    """Open every page; the text that each shows.

    Fails for a missing image, a script of somebody's text that ran, an error in the console, two
    elements of one id, a dead link within the book, a request that leaves the machine, a figure's
    text that does not stand out in the light or the dark theme, and a notebook's page that does not
    offer the notebook, and a table in Markdown that is shown as text.
    """
    shown, links = {}, set()
    with served(html) as address, browser(home) as driver:
        for page in pages_of(html):
            driver.get(f"{address}/{page}")
            broken = driver.execute_script(
                "return [...document.images].filter(i => i.complete && !i.naturalWidth)"
                ".map(i => i.src)"
            )
            assert not broken, (page, broken)
            assert driver.execute_script("return window.hacked") is None, page
            protocols = driver.execute_script(
                "return [...document.querySelectorAll('.bd-article a')].map(a => a.protocol)"
            )
            assert "javascript:" not in protocols, page
            bars = driver.execute_script(
                "return [...document.querySelectorAll('.bd-article p')]"
                ".map(p => p.textContent).filter(text => text.startsWith('| '))"
            )
            assert not bars, (page, bars)
            duplicates = driver.execute_script(
                "const n = {}; for (const e of document.querySelectorAll('svg [id]'))"
                " n[e.id] = (n[e.id] || 0) + 1; return Object.keys(n).filter(k => n[k] > 1)"
            )
            assert not duplicates, (page, duplicates)
            links |= set(
                driver.execute_script("return [...document.links].map(a => a.href.split('#')[0])")
            )
            if page.startswith("notebooks/"):
                source = f"{address}/_sources/{page.removesuffix('.html')}.ipynb"
                offered = "return [...document.links].map(a => a.href)"
                assert source in driver.execute_script(offered), (page, source)
            figure = driver.execute_script("return document.querySelector('.r2d-figure svg')")
            for theme, contrasts in driver.execute_script(CONTRASTS).items():
                assert contrasts or not figure, page
                assert all(contrast >= 4.5 for contrast in contrasts), (page, theme, contrasts)
            severe = [
                each
                for each in driver.get_log("browser")
                # Which a browser asks for by itself where a page, as one that only leads on, names
                # no icon.
                if each["level"] == "SEVERE" and "/favicon.ico " not in each["message"]
            ]
            assert not severe, (page, severe)
            shown[page] = driver.execute_script("return document.body.textContent")
        own = {urlsplit(link).path for link in links if link.startswith(address)}
        missing = [path for path in own if not (html / path.lstrip("/")).exists()]
        assert not missing
        asked = set()
        for entry in driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                target = urlsplit(message["params"]["request"]["url"])
                if target.scheme not in ("data", "blob", "about", "chrome"):
                    asked.add(target.netloc)
        assert asked == {urlsplit(address).netloc}
    return shown


class served:
    """A folder over HTTP on a free loopback port."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()


class browser:
    """Headless Chromium with an empty profile that calls nobody on its own."""

    def __init__(self, home: Path) -> None:
        from selenium import webdriver

        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not chromium or not driver:
            pytest.skip("chromium and chromedriver are not installed")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={home / 'profile'}",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = webdriver.ChromeService(executable_path=driver)
        self.browser = webdriver.Chrome(options=options, service=service)

    def __enter__(self):
        return self.browser

    def __exit__(self, *exception) -> None:
        self.browser.quit()
