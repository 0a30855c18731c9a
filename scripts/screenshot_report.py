"""Take a screenshot of a report page, as in the README.

    python scripts/screenshot_report.py outputs/runs/latest/report.html docs/report.png [--width 1100] [--height 1400]

Needs playwright and a Chromium on PATH (as does tests/test_report_page.py).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1400)
    parser.add_argument("--part", default="", help="id of the section at the top, such as figures or transcripts")
    args = parser.parse_args()
    browser_path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": args.width, "height": args.height}, color_scheme="light", reduced_motion="reduce"
        )
        page.goto(args.page.resolve().as_uri())
        if args.part:
            page.evaluate("id => document.getElementById(id).scrollIntoView()", args.part)
        page.wait_for_timeout(300)
        page.screenshot(path=args.picture)
        browser.close()


if __name__ == "__main__":
    main()
