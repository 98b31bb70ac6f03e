"""The built documentation is searched from its folder, without a server."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from render.browsing import chromium

ROOT = Path(__file__).parents[1]


def test_a_word_is_found_from_a_folder(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("NOT TESTED: mkdocs is missing; `make docs` installs it")
    with chromium(tmp_path / "profile") as browser:
        build = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", tmp_path / "site"]
        subprocess.run(build, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
        browser.open(tmp_path / "site" / "index.html")
        # As people do: the search starts once its field has the focus, which a script gives to no window in the background.
        field = browser.driver.find_element("css selector", "input[data-md-component='search-query']")
        field.click()
        field.send_keys("gradient")
        browser.wait("document.querySelectorAll('.md-search-result__item').length", 30)
        links = browser.run("return [...document.querySelectorAll('a.md-search-result__link')].map(a => a.href)")
        assert links and all(link.startswith((tmp_path / "site").as_uri()) for link in links)
        # What mkdocs-material's search asks for is in the folder.
        assert all(url.startswith(("file:", "data:", "blob:", "about:", "chrome:")) for url in browser.requests())
