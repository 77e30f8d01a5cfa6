"""Headless Chromium, for tests that look at a page: Debian's own, driven by its chromedriver."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

__all__ = ["Browser", "browser"]

Browser = webdriver.Chrome
REMEDY = "apt-get install --no-install-recommends chromium chromium-driver (`make test` does so where it is root)"
ALWAYS = ("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")  # fmt: skip


@contextlib.contextmanager
def browser(profile: Path, width: int = 1400, height: int = 900) -> Iterator[Browser]:
    """A browser whose profile is the empty folder `profile`. Without one on this machine the test fails with what to
    install: a page that nobody looked at is not tested."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.fail(f"{' and '.join(missing)} are needed to look at the page: {REMEDY}", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs["chromium"])
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own refuses root
    for word in (*ALWAYS, *sandbox, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs["chromedriver"])))
    try:
        yield driver
    finally:
        driver.quit()
