"""Notebooks run live in JupyterLab in a real Chromium: every picture really draws, in a light and in a dark theme."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.jupyterlab,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"),
    pytest.mark.skipif(
        find_spec("jupyterlab") is None or find_spec("selenium") is None, reason="needs JupyterLab and selenium"
    ),
]
DRAWN = {  # selector -> how many a notebook must show, once it has run
    "0_quick_start": {".jp-RenderedHTMLCommon table": 3},
    # By plotly where it runs, else as the static picture beside.
    "2_backward_lens": {".jp-OutputArea-output :is(img, svg)": 1, ".jp-RenderedHTMLCommon table": 4},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks without their outputs; gives its address."""
    folder = tmp_path_factory.mktemp("lab")
    for name in DRAWN:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / f"{name}.ipynb")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token = secrets.token_hex(16)
    settings = folder / ".settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # every cell in the page, also those out of view
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / ".jupyter"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
    }  # fmt: skip
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(port), 120, "JupyterLab to answer")
        yield f"http://127.0.0.1:{port}/lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={token}"  # nothing else is open there
    finally:
        server.terminate()
        server.wait(30)


def answers(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --window-size=1300,4000"
    for flag in [
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.mark.parametrize("name", DRAWN)
def test_runs_live_and_draws(lab, browser, name, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    n_code = sum(cell.cell_type == "code" for cell in cells)
    browser.get(lab.format(name))

    def all_of(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    wait_for(lambda: len(all_of(".jp-Notebook .jp-CodeCell")) == n_code, 240, "the notebook to open")
    all_of(".jp-Notebook .jp-Cell")[0].click()  # the status bar speaks of a notebook that has the focus
    wait_for(lambda: "Idle" in browser.execute_script("return document.body.innerText"), 120, "the kernel")
    for _ in cells:
        browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ENTER)
        time.sleep(0.1)

    def prompts():  # those of collapsed cells, the solutions, are empty
        return [each.get_attribute("textContent").strip("[]: \xa0") for each in all_of(".jp-CodeCell .jp-InputPrompt")]

    seen = [place for place, text in enumerate(prompts()) if text]
    wait_for(lambda: all(prompts()[place].isdigit() for place in seen), 240, "every cell to finish")
    wait_for(lambda: "| Idle" in browser.execute_script("return document.body.innerText"), 120, "the last cell")
    assert not all_of(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']")
    for selector, count in DRAWN[name].items():
        wait_for(lambda at=selector, n=count: len(all_of(at)) >= n, 60, f"{count} of {selector}")
    for drawn in all_of("[data-tlb]"):
        assert drawn.get_attribute("id") and drawn.size["height"] > 10 and drawn.size["width"] > 100
    for figure in all_of(".js-plotly-plot"):
        assert figure.size["height"] > 200 and figure.size["width"] > 300
    browser.save_screenshot(str(tmp_path / f"{name}.png"))
