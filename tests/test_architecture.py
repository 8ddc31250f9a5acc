"""The import arrows of the house hold, imports inside functions included; every module imports without the training extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import finegrain

PACKAGE = Path(finegrain.__file__).parent
GROUND = {
    "acquisition",
    "config",
    "equaliser",
    "errors",
    "files",
    "frequency",
    "hu",
    "local_noise",
    "noise_power",
    "parallel",
    "provenance",
    "spread",
}
ARROWS = {
    "scan": set(),
    "simulate": {"scan"},
    "pairs": {"scan", "simulate"},
    "networks": set(),
    "train": {"pairs", "networks"},
    "denoise": {"scan", "networks"},
    "evaluate": {"scan", "pairs"},
    "figures": {"evaluate"},
    "report": {"evaluate", "figures"},
    "physics": {"scan", "evaluate", "figures", "report"},
    "bench": {"pairs"},
    "sample": set(),
    "demo": {"scan", "simulate", "networks", "denoise", "evaluate", "report", "sample"},
    "study": {"scan", "simulate", "pairs", "networks", "train", "denoise", "evaluate", "figures", "report"},
}
TORCH_STAGES = {"networks", "train", "pairs", "denoise", "study"}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts[0] if parts[0] != "__init__" else "finegrain", parts


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "finegrain")


def _stage_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "finegrain" and len(parts) > 1 else None


@pytest.mark.parametrize("stage", sorted(ARROWS))
def test_a_stage_imports_only_what_its_arrows_allow(stage):
    allowed = ARROWS[stage] | GROUND | {stage, "__version__"}
    files = [path for path, owner, _ in _modules() if owner == stage]
    assert files, f"no file belongs to the stage {stage}"
    for path in files:
        found = {_stage_of(name) for name in _imports(path)} - {None}
        assert found <= allowed, f"{path.relative_to(PACKAGE)} imports {sorted(found - allowed)}"


def test_the_ground_stands_on_itself():
    for path, owner, _ in _modules():
        if owner in GROUND:
            found = {_stage_of(name) for name in _imports(path)} - {None}
            assert found <= GROUND | {"__version__"}, f"{path.name} imports {found}"


def test_every_module_has_a_stage():
    owners = {owner for _, owner, _ in _modules()}
    assert owners <= set(ARROWS) | GROUND | {"cli", "finegrain", "weights"}


def test_nobody_imports_the_command_line():
    for path, owner, _ in _modules():
        if owner != "cli":
            assert "finegrain.cli" not in set(_imports(path)), path


def test_torch_stays_in_the_stages_that_train():
    for path, owner, _ in _modules():
        if any(name.split(".")[0] == "torch" for name in _imports(path)):
            assert owner in TORCH_STAGES, path


def test_what_a_hospital_runs_loads_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import finegrain.cli, finegrain.demo, finegrain.denoise, finegrain.scan.dicom, finegrain.report\n"
        "from finegrain.denoise import load_denoiser; load_denoiser()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_public_names_exist():
    for name in finegrain.__all__:
        assert getattr(finegrain, name).__module__.startswith("finegrain")
    with pytest.raises(AttributeError, match="no attribute"):
        finegrain.nothing  # noqa: B018
