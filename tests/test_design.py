"""The rules of the design that a program can check: layers, cheap import, flags, files."""

import ast
import dataclasses
import importlib
import pathlib
import pkgutil
import subprocess
import sys
import time
import tomllib

import pytest
from absl import app, flags, logging  # noqa: F401 (app and logging define flags of absl's own)

import tfmp
from tfmp import cli, commands, errors, recipes

ROOT = pathlib.Path(tfmp.__file__).parents[1]
LAYERS = {
    "errors": 0,
    "workers": 0,
    "policies": 0,
    "loss_scale": 0,
    "hardware": 0,
    "compile_cache": 0,
    "distribution": 0,
    "power": 0,
    "files": 0,
    "provenance": 0,
    "layer_paths": 0,
    "cli": 0,
    "models": 1,
    "data": 1,
    "metrics": 1,
    "doctor": 2,
    "training": 2,
    "evaluation": 2,
    "report": 2,
    "recipes": 3,
    "commands": 4,
    "__main__": 4,
}
RECIPES = recipes.names()
VERBS = [module.name for module in pkgutil.iter_modules(commands.__path__)]
FLAG_FILES = sorted((ROOT / "recipes").glob("*/*.flags"))


def imported(file):
    """Names under tfmp that a file imports: pairs of (top-level part, line)."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "tfmp":
            parts = node.module.split(".")
            for alias in node.names:
                yield (parts[1] if len(parts) > 1 else alias.name), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "tfmp" and len(parts) > 1:
                    yield parts[1], node.lineno


def test_imports_go_down_only():
    wrong = []
    for file in sorted((ROOT / "tfmp").rglob("*.py")):
        part = file.relative_to(ROOT / "tfmp").with_suffix("").parts[0]
        if part == "__init__":
            continue
        for name, line in imported(file):
            # Layer 0 is a base to stand on: its modules may use each other. Above it siblings
            # don't.
            layer = LAYERS.get(name, 99)
            down = layer < LAYERS[part] or layer == 0
            if name != part and not down:
                wrong.append(f"{file}:{line} imports {name}")
    assert not wrong


def test_every_part_has_a_layer():
    parts = {path.stem for path in (ROOT / "tfmp").iterdir() if path.suffix in ("", ".py")}
    assert parts - {"__init__", "__pycache__", "py"} == set(LAYERS)


def test_the_wheel_holds_what_is_no_python():
    """Templates, say: an editable installation, which is all that is tested, has them anyhow."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = settings["tool"]["setuptools"]["package-data"]
    kept = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    there = {x for x in (ROOT / "tfmp").rglob("*") if x.is_file() and "__pycache__" not in x.parts}
    assert kept and kept == {path for path in there if path.suffix != ".py"}


def test_import_is_cheap():
    code = (
        "import sys, time; start = time.perf_counter(); import tfmp; "
        "print(time.perf_counter() - start, 'keras' in sys.modules, 'tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = out.stdout.split()
    assert float(seconds) < 0.3
    assert loaded == ["False", "False"]


def test_every_name_of_the_package_loads():
    for name in tfmp.__all__:
        assert getattr(tfmp, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        getattr(tfmp, "nothing")  # noqa: B009


def test_the_list_of_programs_needs_no_keras():
    start = time.perf_counter()
    out = subprocess.run(
        [sys.executable, "-m", "tfmp"], capture_output=True, text=True, check=True
    ).stdout
    assert time.perf_counter() - start < 3
    assert all(f"python -m tfmp.recipes.{name}" in out for name in RECIPES)
    assert all(f"python -m tfmp {name}" in out for name in VERBS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_follow_the_pattern(name):
    module = importlib.import_module(f"tfmp.recipes.{name}")
    assert len(pathlib.Path(module.__file__).read_text().splitlines()) < 150
    check_program(module, f"python -m tfmp.recipes.{name}")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_all_that_belongs_to_it(name):
    """As CONTRIBUTING.md says; what is missing from the wheel no other test would see."""
    files = [f"recipes/{name}/README.md", f"recipes/{name}/smoke.flags"]
    files.append(f"tests/recipes/test_{name}.py")
    missing = [file for file in files if not (ROOT / file).is_file()]
    for file, line in (
        ("README.md", f"\n| `{name}` | "),
        ("CHANGELOG.md", f"`python -m tfmp.recipes.{name}`"),
    ):
        if line not in (ROOT / file).read_text():
            missing.append(f"in {file}: {line.strip()}")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder, line = f"share/tfmp/recipes/{name}", [f"recipes/{name}/*.flags"]
    if settings["data-files"].get(folder) != line:
        missing.append(f'in pyproject.toml: "{folder}" = {line}')
    assert not missing


@pytest.mark.parametrize("name", VERBS)
def test_verbs_follow_the_pattern(name):
    module = importlib.import_module(f"tfmp.commands.{name}")
    check_program(module, f"python -m tfmp {name}")
    script = (ROOT / "scripts" / f"{name}.py").read_text()
    assert f'main(["{name}", *sys.argv[1:]])' in script


def check_program(module, program):
    assert program in module.__doc__
    fields = dataclasses.fields(module.Config)
    absl_names = set(flags.FLAGS) | {"help", "helpshort", "helpfull", "helpxml", "flagfile"}
    assert not {field.name for field in fields} & absl_names
    assert all(field.metadata["text"].endswith((".", ")")) for field in fields)
    assert module.Config() == cli.parse(module.Config, [])
    help_text = cli.help_text(module.Config, program, module.__doc__)
    assert all(f"--{field.name}=" in help_text for field in fields)


@pytest.mark.parametrize("file", FLAG_FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_flag_files_hold_differences_and_a_header(file):
    config_type = importlib.import_module(f"tfmp.recipes.{file.parent.name}").Config
    config = cli.parse(config_type, [f"--flagfile={file}"])
    text = file.read_text()
    assert text.startswith("# ") and "Hardware:" in text
    default = config_type()
    for line in text.splitlines():
        if line.startswith("--"):
            name = line[2:].split("=")[0]
            assert getattr(config, name) != getattr(default, name), f"{name} repeats its default"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_without_synthetic_data_is_named_as_such(name):
    if name in recipes.LARGE_MODELS:
        model = {x.name: x for x in dataclasses.fields(recipes.config_type(name))}["model"]
        assert recipes.default_model(name) == model.default
        assert recipes.large_model(name) in model.metadata["choices"]
    else:
        with pytest.raises(errors.UserError, match=f"--model and synthetic data.*{name}"):
            recipes.default_model(name)
