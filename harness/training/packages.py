"""The packages for training and measuring tiny-code, and the reader of their source.

The source distributions come from the package index by pip, with versions and hashes fixed here.
"""

import hashlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.common.errors import UserError

LARGEST_FILE = 200_000  # bytes: larger files are tables of data
LEFT_OUT = re.compile(
    r"(^|/)(t|tests?|testing|_?vendor(ed)?|extern|_distutils|third_party|docs?|docs_src|examples?|benchmarks)/"
)
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice)[^/]*", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """A source distribution.

    licence: SPDX expression of its metadata.
    part: "train", "validation" or "test".
    sha256: of the archive.
    """

    name: str
    version: str
    licence: str
    part: str
    sha256: str

    @property
    def archive(self) -> str:
        """The name of the archive's file."""
        return f"{self.name}-{self.version}.tar.gz"


PACKAGES = (
    Package(
        "aiohttp",
        "3.14.5",
        "Apache-2.0 AND MIT",
        "train",
        "5558a7f5a05af9ecf744af91e5baefc436f93c9333e656c27ec253f9a6bbe178",
    ),
    Package(
        "celery", "5.7.0", "BSD-3-Clause", "train", "6a5dfcf6662287204f009a02002b9e66c83d4105e47ebabdc7079108772fc6f0"
    ),
    Package(
        "django", "5.2.19", "BSD-3-Clause", "train", "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1"
    ),
    Package("fastapi", "0.165.0", "MIT", "train", "dd94d4128319c1e1d50535ab023ab698f850a4d2822f0e181747b46f4ff3c0ab"),
    Package(
        "httpx", "0.28.1", "BSD-3-Clause", "train", "75e98c5f16b0f35b567856f597f06ff2270a374470a5c2392242528e3e3e42fc"
    ),
    Package("jedi", "0.20.1", "MIT", "train", "2f71208c3f9c1bca057c0e90d3f272aba44ace88fc4067d7587e9e069331b7e5"),
    Package(
        "kombu", "5.7.0", "BSD-3-Clause", "train", "31e62fdfd2381caa3422f8e02b84a491d9a2180ddda74507b57f4cb1e1c2c2c9"
    ),
    Package("lark", "1.3.1", "MIT", "train", "b426a7a6d6d53189d318f2b6236ab5d6429eaf09259f1ca33eb716eed10d2905"),
    Package(
        "networkx", "3.6.1", "BSD-3-Clause", "train", "26b7c357accc0c8cde558ad486283728b65b6a95d85ee1cd66bafab4c8168509"
    ),
    Package(
        "nltk", "3.10.4", "Apache-2.0", "train", "44679f4e9220abfd496d2c8cdb22f8425ccbe557604f9aa5cacb1c44003dabc1"
    ),
    Package(
        "prompt_toolkit",
        "3.0.53",
        "BSD-3-Clause",
        "train",
        "9ec8a0ad96d5c56148b3f914aa79c1564c3fde5d2e6b876e7bc327e353cf8fa6",
    ),
    Package("pyparsing", "3.3.3", "MIT", "train", "928ae7e20211f3b6f3915a72f06a0cfd29ab9d24279dd6346b6b1a7146397d36"),
    Package("pytest", "9.2.0", "MIT", "train", "97c4f3b1f3c7414aa36465e09b8220f1d03627993bd51b1282e193753c80557b"),
    Package(
        "requests", "2.34.2", "Apache-2.0", "train", "f288924cae4e29463698d6d60bc6a4da69c89185ad1e0bcc4104f584e960b9ed"
    ),
    Package("rich", "15.0.0", "MIT", "train", "edd07a4824c6b40189fb7ac9bc4c52536e9780fbbfbddf6f1e2502c31b068c36"),
    Package("setuptools", "84.2.1", "MIT", "train", "3ff8b3b5492a0aa66960f4419365a86b84e013070d4313e4d4a6894f5d64d6bc"),
    Package(
        "sphinx", "9.0.4", "BSD-2-Clause", "train", "594ef59d042972abbc581d8baa577404abe4e6c3b04ef61bd7fc2acbd51f3fa3"
    ),
    Package(
        "starlette",
        "1.10.0",
        "BSD-3-Clause",
        "train",
        "b8399098d4c1e3522734f7235dc79b1fc967f96cf139c81e0fa30479e0685f9b",
    ),
    Package("textual", "8.2.8", "MIT", "train", "3f106a9fbc73e39dd266c9712432087de78a6d644084c7c241d6a25c3169115b"),
    Package(
        "tornado", "6.6.1", "Apache-2.0", "train", "28e6311402af59c8b02e3fa0f5e7d8eb465b25081381803b127d97e6a4395d5a"
    ),
    Package("twisted", "26.10.0", "MIT", "train", "5f0355403e507fc23ceea85e9dbb4bc59335aabde41dd324e8b8cea180dd38de"),
    Package("urllib3", "2.8.0", "MIT", "train", "63bf2ead4c879426ebf22ef2a781eeb4aa3b4ae798a0435506f8687fd5bb9b63"),
    Package(
        "click",
        "8.5.1",
        "BSD-3-Clause",
        "validation",
        "9bbfada76703fd1d784b83eea012e3e8c6a001a876543ef104fa56aaaeb072b4",
    ),
    Package(
        "jinja2",
        "3.1.6",
        "BSD-3-Clause",
        "validation",
        "0137fb05990d35f1275a587e9aee6d56da821fc83491a0fb838183be43f66d6d",
    ),
    Package("attrs", "26.1.0", "MIT", "test", "d03ceb89cb322a8fd706d4fb91940737b6642aa36998fe130a9bc96c985eff32"),
    Package(
        "werkzeug", "3.1.9", "BSD-3-Clause", "test", "55ca7c70a75689be937aa27f8ff4b018f06ff4838fc73045560bf0f5a1291060"
    ),
)


def download(folder: Path, packages: Iterable[Package] = PACKAGES) -> None:
    """Download the missing archives with pip, which refuses another hash.

    pip asks each package for its metadata, and for that runs the package's own build code.

    Args:
        folder: folder of the archives, created if needed.
        packages: the packages.

    Raises:
        UserError: if pip fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if (folder / package.archive).exists():
            continue
        line = folder / f"{package.name}.requirement"
        line.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), "--requirement", str(line)]
        failed = subprocess.run([sys.executable, "-m", "pip", "download", *options]).returncode
        line.unlink()
        if failed:
            raise UserError(f"pip did not download {package.name} {package.version}: see its message above.")


def members(folder: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the files in an archive, in order of paths.

    Args:
        folder: folder of the archives.
        package: the package.

    Raises:
        UserError: if the archive is missing or is another one.
    """
    path = folder / package.archive
    if not path.exists():
        raise UserError(f"{path} is missing: --download fetches it.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise UserError(f"{path} is not the archive that training/packages.py names: delete it, --download fetches it.")
    with tarfile.open(path) as archive:
        files = {m.name.partition("/")[2]: m for m in archive if m.isfile()}
        for name in sorted(files):
            content = archive.extractfile(files[name])
            assert content is not None
            yield name, content.read()


def read_source(folder: Path, package: Package) -> list[str]:
    """Return the Python files of a package, in order of paths.

    Left out are tests, documentation, copies of other packages, tables of data, empty files, and
    files not in UTF-8. Lines end with a line feed.

    Args: see `members`.
    """
    texts = []
    for name, content in members(folder, package):
        if not name.endswith(".py") or LEFT_OUT.search(name) or len(content) > LARGEST_FILE:
            continue
        try:
            text = content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if text.strip():
            texts.append(text)
    return texts


def read_licence(folder: Path, package: Package) -> str:
    """Return the licence files at the top of a package, each below its name.

    Args: see `members`.
    """
    found = [
        f"{package.name} {package.version}, {name}\n\n{content.decode()}"
        for name, content in members(folder, package)
        if LICENCE_FILE.fullmatch(name)
    ]
    return "\n\n".join(found)


def digest(texts: Iterable[str]) -> str:
    """Return the sha256 of texts in UTF-8, each followed by a zero byte."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    return total.hexdigest()
