# SPDX-License-Identifier: Apache-2.0
"""Make the environment of the checkout: `environment.py FOLDER EXTRA`.

One line says what is missing. Where no package index can be reached, the packages that this
interpreter already has will do.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE_ROOTS = ("codegen", "runtime", "templates")
NEEDED = {
    "test": ("click", "jinja2", "numpy", "pytest", "hypothesis"),
    "dev": ("click", "jinja2", "numpy", "pytest", "hypothesis", "ruff", "mypy"),
}


def main():
    folder, extra = sys.argv[1:]
    if sys.version_info < (3, 11):  # noqa: UP036  (an old interpreter reads this far, and says so)
        version = ".".join(map(str, sys.version_info[:3]))
        fail(f"needs Python 3.11 or later: {sys.executable} is {version}; set PYTHON=")
    if has("venv") and has("ensurepip"):
        if os.path.exists(python_of(folder)):
            if installed(folder, extra):
                return
            if is_complete(folder, extra):
                print(f"{folder} cannot be updated, and is used as it is", file=sys.stderr)
                return
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", folder])
        if installed(folder, extra):
            return
    elif not all(map(has, NEEDED[extra])):
        fail("needs the venv module: install python3-venv (apt-get install python3-venv)")
    borrow(folder, extra)


def installed(folder, extra):
    """Install the checkout and its requirements; False when pip cannot."""
    pip = [python_of(folder), "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--retries", "1", "--editable", f"{ROOT}[{extra}]"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
    return done.returncode == 0


def borrow(folder, extra):
    """An environment that sees the source roots and the packages of this interpreter."""
    missing = [name for name in NEEDED[extra] if not has(name)]
    if missing:
        fail(
            f"cannot install the requirements, and {sys.executable} lacks {', '.join(missing)}: "
            "connect to a package index, or install them"
        )
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", folder])
    major, minor = sys.version_info[:2]
    site = os.path.join(folder, "lib", f"python{major}.{minor}", "site-packages")
    seen = [os.path.join(ROOT, name) for name in SOURCE_ROOTS]
    seen += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    with open(os.path.join(site, "attn_codegen_checkout.pth"), "w") as paths:
        paths.writelines(path + "\n" for path in dict.fromkeys(seen))
    print(f"{folder} uses the packages of {sys.executable}", file=sys.stderr)


def is_complete(folder, extra):
    """True when the environment has all that the extra needs."""
    imports = "import attn_codegen, attn_templates, " + ", ".join(NEEDED[extra])
    command = [python_of(folder), "-c", imports]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def python_of(folder):
    return os.path.join(folder, "bin", "python")


def has(module):
    return importlib.util.find_spec(module) is not None


def run(command):
    if subprocess.run(command).returncode:
        fail(f"cannot make the environment: {' '.join(command)} failed")


def fail(message):
    print(message, file=sys.stderr)
    sys.exit(1)


main()
