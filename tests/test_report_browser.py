"""The report in a browser: it opens without a word on the console, fits a phone and a desk, and follows the mode of the reader."""

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from report_cases import add_checkpoint, make_run  # noqa: E402
from test_report_page import _evaluation  # noqa: E402

from dsengine.study.report.style import DARK, LIGHT
from dsengine.study.report.write import write_report

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The wrapper gives the page the width of a phone, which a headless window cannot have, and measures it.
_WRAPPER = """<body style="margin:0">{frames}<pre id=o></pre><script>
onload = () => {{ for (const f of document.querySelectorAll('iframe')) {{
  const d = f.contentDocument, width = +f.width, count = (all, keep) => [...all].filter(keep).length;
  const wide = count(d.querySelectorAll('body *'), e => !e.closest('.scroll, svg') && e.getBoundingClientRect().right > width + 0.5);
  const small = count(d.querySelectorAll('svg text'), e => {{ const m = e.getScreenCTM();
    return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b) < 8; }});
  const broken = count(d.images, i => i.complete && !i.naturalWidth);
  o.textContent += `width ${{width}} page ${{d.documentElement.scrollWidth}} wide ${{wide}} small ${{small}} pictures ${{d.images.length}} broken ${{broken}};`;
}} }}</script>"""
_WIDTHS = (320, 360, 768, 1280)


@functools.cache
def _browser() -> str:
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser installed: none of {', '.join(_NAMES)} is on the PATH (Debian: apt-get install chromium)")
    return found


def _run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    common = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking", "--no-first-run",
              f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=4000", "--allow-file-access-from-files"]
    return subprocess.run([_browser(), *common, *flags], capture_output=True, text=True, timeout=180)


def _screenshot(page: Path, folder: Path, *flags: str, size: tuple[int, int] = (1280, 1600)) -> tuple[np.ndarray, str]:
    """(H, W, 3) pixels, and what the browser wrote to its log."""
    target = folder / "shot.png"
    done = _run(folder, f"--window-size={size[0]},{size[1]}", f"--screenshot={target}", *flags, page.as_uri())
    assert target.exists(), done.stderr[-2000:]
    return np.asarray(Image.open(target).convert("RGB")), done.stderr


@pytest.fixture(scope="module")
def page(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs with everything in it, long names included."""
    _browser()
    home = tmp_path_factory.mktemp("browser")
    runs = [make_run(home / "runs" / name, corpus=small_corpus, steps=40, seed=k) for k, name in enumerate(("a", "a-run-with-a-very-long-name-" * 5))]
    add_checkpoint(runs[0], small_corpus)
    classes = tuple(f"a class with a long name {k}" for k in range(2))
    _evaluation(home / "runs" / "probe", runs[0], classes=classes)
    return write_report(runs, out=home / "r.html", samples=24)


def test_the_console_stays_silent_and_nothing_is_fetched(page: Path, tmp_path: Path) -> None:
    pixels, log = _screenshot(page, tmp_path)
    assert not [line for line in log.splitlines() if "CONSOLE" in line or "ERR_" in line or "Refused" in line], log
    assert len(np.unique(pixels.reshape(-1, 3)[::97], axis=0)) > 20


def test_a_page_with_a_script_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "p.html").write_text("<!doctype html><title>x</title><script>console.error('heard')</script><img src='http://127.0.0.1:9/x.png'>")
    assert "heard" in _screenshot(tmp_path / "p.html", tmp_path)[1]


def test_nothing_is_wider_than_the_window_but_what_scrolls_by_itself(page: Path, tmp_path: Path) -> None:
    wrapper = page.parent / "wrapper.html"
    wrapper.write_text(_WRAPPER.format(frames="".join(f'<iframe src="{page.name}" width={width} height=900 style="border:0"></iframe>' for width in _WIDTHS)))
    done = _run(tmp_path, "--window-size=1400,1000", "--dump-dom", wrapper.as_uri())
    measured = [dict(zip(part.split()[::2], map(int, part.split()[1::2]))) for part in re.findall(r"width [^;{$]*\d(?=;)", done.stdout)]
    assert [found["width"] for found in measured] == list(_WIDTHS), done.stdout[-500:] + done.stderr[-500:]
    for found in measured:
        assert found["page"] <= found["width"] and found["wide"] == found["small"] == found["broken"] == 0 and found["pictures"] > 4, found


@pytest.mark.parametrize("scheme, theme", [(1, LIGHT), (0, DARK)])
def test_the_page_follows_the_reader_s_mode(page: Path, tmp_path: Path, scheme: int, theme: dict[str, str]) -> None:
    pixels, _ = _screenshot(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}", size=(800, 600))
    assert "#" + "".join(f"{value:02x}" for value in pixels[-1, 3]) == theme["paper"]


def test_the_printed_page_is_light_and_holds_the_folded_configuration(page: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, "--blink-settings=preferredColorScheme=0", f"--print-to-pdf={tmp_path / 'p.pdf'}", page.as_uri())
    assert (tmp_path / "p.pdf").exists(), done.stderr[-500:]
    assert (tmp_path / "p.pdf").stat().st_size > 20_000
