"""What an output folder must tell of its making: the resolved configuration, its hash, the versions, the commit."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from finegrain import __version__
from finegrain.config import Config, save_config
from finegrain.files import write_whole

PACKAGES = ("numpy", "scipy", "finufft", "onnxruntime", "torch", "pydicom", "scikit-image")


def versions() -> dict[str, str]:
    """Versions of finegrain, Python and the packages that numbers depend on."""
    found = {"finegrain": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(package: Path = Path(__file__).parent) -> str | None:
    """The commit that the package runs from, with "-dirty" if its folder was changed since; None if git does not track it.

    A repository around an installed package, such as one that holds a virtual environment, says nothing of the package.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_provenance(folder: Path, config: Config) -> None:
    """Write `config.yaml` and `provenance.json` into an output folder."""
    save_config(config, folder / "config.yaml")
    facts = {"config_hash": config.hash(), "git_commit": git_commit(), "versions": versions()}
    write_whole(folder / "provenance.json", json.dumps(facts, indent=1) + "\n")
