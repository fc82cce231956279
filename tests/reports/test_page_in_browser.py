"""The page in a real browser: no error in its console, figures drawn, filter and sorting at work."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_comparison import METHODS, made_comparison
from PIL import Image

from clbench.reports.page import write_page

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

if BROWSER is None:
    pytest.skip(f"no browser found: one of {', '.join(NAMES)} must be on the PATH", allow_module_level=True)

EVIL = '<img src=x onerror="console.error(1)"> $a$ $b$'


def in_browser(page: Path, *options: str, width: int = 1280, height: int = 1000) -> tuple[str, list[str]]:
    """What ``--dump-dom`` and the like print, and the lines of the page's console."""
    # Chromium's own sandbox does not work for root, as which containers often run.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [
            str(BROWSER), "--headless", *sandbox, "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
            f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=10000", f"--window-size={width},{height}",
            *options, page.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(page: Path, script: str) -> Path:
    """A copy of the page that runs ``script`` at its end."""
    changed = page.with_name("changed.html")
    source = page.read_text(encoding="utf-8")
    changed.write_text(source.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return changed


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("browser") / "report.html"
    write_page(made_comparison(scenarios=("one", "two", "three"), plasticity=("er", "ewc")), file)
    return file


def test_every_figure_is_drawn_and_the_console_is_silent(page):
    dom, console = in_browser(page, "--dump-dom")
    assert console == []
    plots = re.findall(r'<div class="plot[ "]', dom)
    assert len(plots) == len(re.findall(r'class="plot-container', dom)) == 3 * 9 + 5
    assert len(re.findall(r'class="main-svg"', dom)) >= 2 * len(plots)


def test_names_that_look_like_markup_do_nothing(tmp_path):
    write_page(made_comparison([EVIL, "er", "<b>bold</b>"], ("one",), title=EVIL), tmp_path / "report.html")
    dom, console = in_browser(tmp_path / "report.html", "--dump-dom")
    assert console == []
    assert "<img src=x" not in dom
    assert "<b>bold" not in dom
    assert "&lt;b&gt;bold" in dom


def test_unticking_a_method_hides_it_in_every_figure(page):
    script = """
      const box = boxes.find(box => box.value === "ewc");
      box.click();
      const shown = plots.filter(plot => !plot.closest("[data-method]"))
        .map(plot => plot.data.filter(trace => trace.meta === "ewc" && trace.visible !== false).length);
      const others = plots.filter(plot => !plot.closest("[data-method]"))
        .map(plot => plot.data.filter(trace => trace.meta === "er" && trace.visible === false).length);
      const blocks = [...document.querySelectorAll("[data-method]")].filter(block => block.offsetParent)
        .map(block => block.dataset.method);
      box.click();
      const back = plots.every(plot => !plot.data.some(trace => trace.visible === false));
      document.title = JSON.stringify([Math.max(...shown), Math.max(...others), [...new Set(blocks)], back]);
    """
    dom, console = in_browser(with_script(page, script), "--dump-dom")
    assert console == []
    assert f"<title>[0,0,{[m for m in METHODS if m != 'ewc']},true]</title>".replace("'", '"').replace(" ", "") in dom


def test_headings_sort_their_table(page):
    script = """
      const table = [...document.querySelectorAll("table")].find(table => table.rows.length === 4);
      const column = index => [...table.tBodies[0].rows].map(row => row.cells[index].textContent);
      const buttons = table.querySelectorAll("th button");
      const seen = [column(1)];
      buttons[1].click(); seen.push(column(1));
      buttons[1].click(); seen.push(column(1));
      buttons[0].click(); seen.push(column(0));
      document.title = JSON.stringify(seen.map(column => column.map(text => text.split(" ")[0]).join(" ")));
    """
    dom, console = in_browser(with_script(page, script), "--dump-dom")
    assert console == []
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title
    assert title[1] == '["90.0 80.5 71.0","90.0 80.5 71.0","71.0 80.5 90.0","finetune ewc er"]'


@pytest.mark.parametrize("width", [800, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    script = "document.title = document.documentElement.scrollWidth <= innerWidth;"
    dom, _ = in_browser(with_script(page, script), "--dump-dom", width=width)
    assert "<title>true</title>" in dom
    picture = page.with_name(f"{width}.png")
    in_browser(page, f"--screenshot={picture}", width=width)
    with Image.open(picture) as image:
        assert image.width == width
        pixels = np.asarray(image.convert("L"))
    assert (pixels == 255).mean() > 0.5  # light
    assert pixels.min() < 60
