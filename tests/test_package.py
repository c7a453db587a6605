"""The package as a user imports it."""

import subprocess
import sys

import limbeck as lb


def test_every_public_name_is_there():
    for name in lb.__all__:
        assert getattr(lb, name) is not None, name


def test_no_module_hides_a_public_name():
    """Importing limbeck.x sets the attribute x of the package: a module called like a function would replace it."""
    import pkgutil

    modules = {module.name for module in pkgutil.iter_modules(lb.__path__)}
    from limbeck import _NAMES

    assert not modules & set(_NAMES)


def test_importing_is_light():
    """`import limbeck` loads no torch; the command line answers without it."""
    code = "import sys, limbeck, limbeck.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'onnxruntime', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
