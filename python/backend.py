"""Builds the Python package for pip: the hooks of PEP 517 and PEP 660, with the standard library alone.

The wheel has the packages meshnode, pp and ppft, the commands ppserver and meshnode-python, and the binary of meshnode, if it
is built (`make build`) or named by MESHNODE_BIN: then there is nothing else to set up.
"""

import base64
import hashlib
import io
import os
import sys
import sysconfig
import tarfile
import zipfile

NAME, VERSION = "meshnode", "0.1.0"
PACKAGES = ("meshnode", "pp", "ppft")
COMMANDS = {"ppserver": "pp.server:main", "meshnode-python": "meshnode._python:main"}
METADATA = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: Your laptops, one computer: pp programs, and concurrent.futures, on a mesh of machines
License: Apache-2.0
Requires-Python: >=3.8
Classifier: Programming Language :: Python :: 3
Classifier: Typing :: Typed
Description-Content-Type: text/markdown

{readme}"""

HERE = os.path.dirname(os.path.abspath(__file__))


def _binary():
    """The path of meshnode's binary, "" if there is none."""
    suffix = ".exe" if os.name == "nt" else ""
    named = os.environ.get("MESHNODE_BIN", "")
    built = os.path.join(os.path.dirname(HERE), "bin", "meshnode" + suffix)
    for path in (named, built):
        if path and os.path.isfile(path):
            return path
    return ""


def _tag():
    """Who can use the wheel: with a binary in it, machines like this one."""
    if not _binary():
        return "py3-none-any"
    return "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _metadata():
    try:
        with open(os.path.join(HERE, "README.md"), encoding="utf-8") as f:
            readme = f.read()
    except FileNotFoundError:
        readme = ""
    return METADATA.format(name=NAME, version=VERSION, readme=readme)


def _sources():
    """The files of the packages, by their paths from here."""
    for package in PACKAGES:
        for folder, folders, files in os.walk(os.path.join(HERE, package)):
            folders[:] = sorted(f for f in folders if f != "__pycache__")
            for name in sorted(files):
                if name.endswith(".py") or name == "py.typed":
                    yield os.path.relpath(os.path.join(folder, name), HERE)


def _read(path):
    with open(path, "rb") as f:
        return f.read()


def _wheel(directory, contents):
    """Writes a wheel of contents, pairs of a name and bytes, and returns its file's name."""
    info = "%s-%s.dist-info" % (NAME, VERSION)
    commands = "".join("%s = %s\n" % c for c in sorted(COMMANDS.items()))
    contents = list(contents) + [
        (info + "/METADATA", _metadata().encode("utf-8")),
        (info + "/WHEEL", ("Wheel-Version: 1.0\nGenerator: meshnode\nRoot-Is-Purelib: true\nTag: %s\n" % _tag()).encode()),
        (info + "/entry_points.txt", ("[console_scripts]\n" + commands).encode()),
        (info + "/top_level.txt", ("\n".join(PACKAGES) + "\n").encode()),
    ]
    file_name = "%s-%s-%s.whl" % (NAME, VERSION, _tag())
    record = ""
    with zipfile.ZipFile(os.path.join(directory, file_name), "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in contents:
            name = name.replace(os.sep, "/")
            entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))  # the same sources make the same wheel
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if ".data/scripts/" in name else 0o100644) << 16  # pip asks for the kind of file, too
            wheel.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record += "%s,sha256=%s,%d\n" % (name, digest, len(content))
        record += info + "/RECORD,,\n"
        wheel.writestr(info + "/RECORD", record)
    return file_name


def _scripts():
    path = _binary()
    if path:
        yield "%s-%s.data/scripts/meshnode%s" % (NAME, VERSION, os.path.splitext(path)[1]), _read(path)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """What pip install asks for."""
    contents = [(path, _read(os.path.join(HERE, path))) for path in _sources()]
    return _wheel(wheel_directory, contents + list(_scripts()))


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """What pip install -e asks for: the packages stay where they are."""
    return _wheel(wheel_directory, [("__editable__.meshnode.pth", (HERE + "\n").encode(sys.getfilesystemencoding()))])


def build_sdist(sdist_directory, config_settings=None):
    """The sources for an index."""
    root = "%s-%s" % (NAME, VERSION)
    with tarfile.open(os.path.join(sdist_directory, root + ".tar.gz"), "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in ["pyproject.toml", "backend.py", "README.md"] + list(_sources()):
            if os.path.exists(os.path.join(HERE, path)):
                archive.add(os.path.join(HERE, path), root + "/" + path.replace(os.sep, "/"))
        info = tarfile.TarInfo(root + "/PKG-INFO")
        content = _metadata().encode("utf-8")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return root + ".tar.gz"
