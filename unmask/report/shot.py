"""A picture of a report's top, for a README: `python -m unmask.report.shot DIR/report.html OUT.png`.

It shows the answer, the scores and the table, and no image of the data. Needs playwright (`unmask[dev]`) and a
Chromium of the system.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRAWN = "[...document.querySelectorAll('.plot')].every(each => each.querySelector('.main-svg'))"
PATIENCE = 300
"""seconds that a busy machine has to draw a page"""
TOP = "answer", "table", "cost"
"""sections without photographs"""


def browser() -> str | None:
    """Where the system's Chromium is; None without one."""
    return next((found for found in map(shutil.which, BROWSERS) if found), None)


@contextmanager
def opened(report: str | Path, width: int = 1280, height: int = 800, scale: float = 1) -> "Iterator[tuple[Page, Any]]":
    """Open a report in a browser without a window, its charts drawn.

    Args:
        report: the file.
        width, height: of the view, in CSS px.
        scale: dots a CSS px.
    Yields:
        playwright's page, and the list of errors that it has reported so far.
    Raises:
        ImportError, FileNotFoundError: playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ImportError("a picture of the report needs playwright: pip install playwright") from None
    program = browser()
    if program is None:
        raise FileNotFoundError(f"a picture of the report needs a browser; none of {', '.join(BROWSERS)} is in PATH")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            page, errors = chromium.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=scale, reduced_motion="reduce"
            ), []  # fmt: skip
            page.set_default_timeout(1000 * PATIENCE)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
            page.on("request", lambda ask: errors.append(ask.url) if ask.url.startswith("http") else None)
            page.goto(Path(report).resolve().as_uri())
            page.wait_for_function(DRAWN)
            yield page, errors
        finally:
            chromium.close()


def shoot(report: str | Path, out: str | Path, width: int = 1200, scale: float = 2) -> Path:
    """Save the top of a report, up to the costs.

    Args:
        report: the file.
        out: PNG.
        width: of the page, in CSS px.
        scale: dots a CSS px.
    Returns:
        the picture's file.
    """
    with opened(report, width, scale=scale) as (page, _):
        page.add_style_tag(content="nav, details { display: none; }")
        ends = [page.locator(f"#{name}").bounding_box() for name in TOP if page.locator(f"#{name}").count()]
        bottom = max(box["y"] + box["height"] for box in ends if box)
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        clip = {"x": 0.0, "y": 0.0, "width": float(width), "height": bottom + 24}
        page.screenshot(path=out, full_page=True, clip=clip)  # type: ignore[arg-type]
    return Path(out)


if __name__ == "__main__":
    print(shoot(sys.argv[1], sys.argv[2]))
