"""A commit is reported only of the code that really runs."""

import shutil
import subprocess

import pytest

from finegrain.provenance import git_commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def package(tmp_path):
    """A repository with a package in it, one commit old."""
    folder = tmp_path / "src" / "package"
    folder.mkdir(parents=True)
    for name in ("provenance.py", "study.py"):
        (folder / name).write_text("a = 1\n")
    (tmp_path / "README.md").write_text("read me\n")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "first")
    return folder


def _git(folder, *arguments):
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout_is_told_and_changes_of_the_package_with_it(package):
    commit = _git(package, "rev-parse", "HEAD")
    assert git_commit(package) == commit
    (package.parents[1] / "README.md").write_text("a change elsewhere\n")
    assert git_commit(package) == commit
    (package / "study.py").write_text("a = 2\n")
    assert git_commit(package) == f"{commit}-dirty"


def test_a_new_file_in_the_package_counts_as_a_change(package):
    (package / "new.py").write_text("a = 1\n")
    assert git_commit(package).endswith("-dirty")


def test_a_package_installed_inside_a_foreign_repository_has_no_commit(package):
    installed = package.parents[1] / ".venv" / "package"
    shutil.copytree(package, installed)
    assert git_commit(installed) is None


def test_outside_of_any_repository_there_is_no_commit(tmp_path):
    (tmp_path / "provenance.py").write_text("")
    assert git_commit(tmp_path) is None
