"""The report in a real browser: drawn in light and in dark mode, without console messages."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_report import bench_file, eval_file, write_files

import hybridize

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DARK, LIGHT = 0, 1


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    return found


def screenshot(browser: str, page: Path, scheme: int) -> tuple[np.ndarray, list[str]]:
    """Return gray values from 0 to 1, and the page's messages on the browser's console."""
    from matplotlib.image import imread

    picture = page.with_suffix(f".{scheme}.png")
    done = subprocess.run(
        [browser, *QUIET, f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr",
         f"--blink-settings=preferredColorScheme={scheme}", "--window-size=800,2400",
         f"--screenshot={picture}", page.as_uri()],
        check=True, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return imread(picture)[..., :3].mean(-1), messages


def test_a_browser_draws_the_page_in_light_and_dark_mode(browser, tmp_path):
    files = write_files(tmp_path, bench_file(), eval_file())
    hybridize.report(files, tmp_path / "report.html")
    for scheme, dark in ((LIGHT, False), (DARK, True)):
        pixels, messages = screenshot(browser, tmp_path / "report.html", scheme)
        assert messages == []
        paper = float(pixels[0, 0])
        assert paper < 0.2 if dark else paper > 0.9
        # Something is drawn in every quarter of the screenshot.
        for part in np.array_split(pixels, 4):
            assert np.abs(part - paper).max() > 0.4


def test_console_messages_are_noticed(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><script>console.error('a message')</script>")
    _, messages = screenshot(browser, page, LIGHT)
    assert any("a message" in line for line in messages)
