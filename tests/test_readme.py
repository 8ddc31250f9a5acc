"""What the README says to type exists."""

import re
import subprocess
from pathlib import Path

import pytest

from finegrain.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_named_exists(page):
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)  # Python and YAML name no command
    code = "\n".join(re.findall(r"^    .*$|`[^`\n]+`", prose, flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|[\s`/])finegrain ([a-z-]+)", code)) <= known
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)`", text)) | set(re.findall(r"^    make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_and_file_named_exists(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) > 400, "a page without content"
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    for link in links:
        assert (page.parent / link).exists(), link
    for path in re.findall(r"\b(?:configs|benchmarks|tools)/[a-z0-9_./-]+\.(?:yaml|py)\b", text):
        assert (ROOT / path).is_file(), path


def test_the_sample_is_small_and_attributed():
    sample = ROOT / "src" / "finegrain" / "sample"
    assert sum(path.stat().st_size for path in (sample / "chest").glob("*.dcm")) <= 3_000_000
    assert "CC BY 3.0" in (sample / "ATTRIBUTION.md").read_text()
    assert "CC BY 3.0" in (ROOT / "README.md").read_text()


def test_make_installs_nothing_twice():
    """With the stamps in place, `make -n test` only runs the tests."""
    if not (ROOT / ".venv" / ".dev").is_file():
        pytest.skip("not installed by make")
    plan = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "pip install" not in plan
