"""The corpus of tiny-code from archives made here, and its measure against brute force."""

import hashlib
import io
import itertools
import math
import re
import tarfile

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MptForCausalLM

from harness.common.errors import UserError
from harness.common.paths import TEXTS
from harness.training import __main__ as train_tiny
from harness.training import code_measure, held_out, net, packages, text_model, tokenizer
from harness.training.packages import Package
from tests.training.test_text_models import small_recipe

SOURCE = """\
import os


class {name}:
    def read_all(self, path):
        with open(path) as file:
            return [line for line in file if line]


def size_{name}(path):
    return os.stat(path).st_size
"""


def archive(folder, name, files):
    """Write a source distribution, and return its package."""
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as made:
        for inner, content in files.items():
            member = tarfile.TarInfo(f"{name}-1.0/{inner}")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of four archives, and their packages."""
    folder, made = tmp_path_factory.mktemp("archives"), []
    for name, part in (("one", "train"), ("two", "train"), ("three", "validation"), ("four", "test")):
        files = {f"src/{name}/m{i:02}.py": SOURCE.format(name=f"{name}_{i}").encode() for i in range(30)}
        files["LICENSE.txt"] = b"Use it."
        _, digest = archive(folder, name, files)
        made.append(Package(name, "1.0", "MIT", part, digest))
    return folder, tuple(made)


def test_the_packages_are_named_once_under_permissive_licences():
    names = [package.name for package in packages.PACKAGES]
    assert len(set(names)) == len({package.sha256 for package in packages.PACKAGES}) == len(names)
    assert {package.part for package in packages.PACKAGES} == {"train", "validation", "test"}
    found = {word for package in packages.PACKAGES for word in package.licence.split(" AND ")}
    assert found <= {"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0"}
    assert all(re.fullmatch("[0-9a-f]{64}", package.sha256) for package in packages.PACKAGES)


def test_what_is_read_of_an_archive(tmp_path):
    files = {
        "b.py": b"second\r\n",
        "a/m.py": "\ufefffirst é\n".encode(),
        "a/tests/t.py": b"no\n",
        "a/_vendor/other/v.py": b"no\n",
        "docs/conf.py": b"no\n",
        "a/latin.py": "é".encode("latin-1"),
        "a/table.py": b"x" * (packages.LARGEST_FILE + 1),
        "a/empty.py": b"\n",
        "a/latest.py": b"third\n",
        "a/data.txt": b"no\n",
        "LICENSE": b"Do what you like.",
        "a/LICENSE": b"not at the top",
    }
    _, digest = archive(tmp_path, "p", files)
    package = Package("p", "1.0", "MIT", "train", digest)
    texts = packages.read_source(tmp_path, package)
    assert texts == ["third\n", "first é\n", "second\n"]
    assert packages.digest(texts) == hashlib.sha256("third\n\0first é\n\0second\n\0".encode()).hexdigest()
    assert packages.digest(texts) == packages.digest(packages.read_source(tmp_path, package))
    assert packages.read_licence(tmp_path, package) == "p 1.0, LICENSE\n\nDo what you like."


def test_another_archive_and_a_missing_one_are_refused(tmp_path, monkeypatch, capfd):
    archive(tmp_path, "p", {"a.py": b"x\n"})
    with pytest.raises(UserError, match="not the archive that training/packages.py names"):
        packages.read_source(tmp_path, Package("p", "1.0", "MIT", "train", "0" * 64))
    absent = Package("q", "1.0", "MIT", "train", "0" * 64)
    with pytest.raises(UserError, match="q-1.0.tar.gz is missing"):
        packages.read_source(tmp_path, absent)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="pip did not download q 1.0"):
        packages.download(tmp_path, [absent])
    assert not list(tmp_path.glob("*.requirement"))


def test_the_embedded_texts_are_those_of_their_page():
    page = (TEXTS / "README.md").read_text()
    for name in ("novel.txt", "code.txt"):
        content = (TEXTS / name).read_bytes()
        assert len(content) <= 1_000_000
        assert f"| {len(content)} | `{hashlib.sha256(content).hexdigest()}` |" in page
    licences = (TEXTS / "LICENSES.txt").read_text()
    for package in packages.PACKAGES:
        assert (f"{package.name} {package.version}" in licences) == (package.part == "test")
    assert licences.count("Permission is hereby granted") + licences.count("Redistribution and use in source") == 2
    assert "\n\n\n" not in (TEXTS / "novel.txt").read_text()


def test_writing_the_texts_again_gives_the_same_files(corpus, tmp_path, monkeypatch):
    folder, made = corpus
    monkeypatch.setattr(packages, "PACKAGES", made)
    assert held_out.code(folder) == "".join(SOURCE.format(name=f"four_{i}") for i in range(30))


def test_distances_of_tokens():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(20, (300,), generator=generator)
    found = code_measure.token_distances(ids)
    for i, token in enumerate(ids.tolist()):
        before = [j for j in range(i) if ids[j] == token]
        assert found[i] == (i - before[-1] if before else 0)


def test_distances_of_identifiers():
    text = "for name_2 in x.name_2:\n    na = name_2(x)  # x\n" + SOURCE
    encoder = tokenizer.learn([text], 270, 4096)  # mostly bytes: identifiers of several tokens
    found = code_measure.identifier_distances(encoder, text).tolist()
    # an own reading, token by token
    keywords = {"for", "in", "import", "class", "def", "with", "as", "return", "if"}
    words = [match for match in re.finditer(r"[A-Za-z_]\w*", text) if match[0] not in keywords]
    pieces = [encoder.decode([token]) for token in encoder.encode(text)]
    assert "".join(pieces) == text
    ends = list(itertools.accumulate(len(piece) for piece in pieces))

    def first_token(word):
        return 1 + next(i for i, end in enumerate(ends) if end > word.start())

    assert found[0] == -1  # the end token
    for position, end in enumerate(ends, 1):
        word = next((w for w in words if w.start() < end <= w.end()), None)
        if word is None:
            assert found[position] == -1
            continue
        before = [w for w in words if w[0] == word[0] and w.start() < word.start()]
        assert found[position] == (first_token(word) - first_token(before[-1]) if before else 0), word
    accented = encoder.encode("é = é")
    assert len(code_measure.identifier_distances(encoder, "é = é")) == 1 + len(accented)


def test_gains_by_distance_add_up():
    gain = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 0.5, 8.0]])
    distance = torch.tensor([[0, -1, 64], [65, 5000, 3]])
    rows = {row["distance"]: row for row in code_measure.by_distance(gain, distance, 10)}
    assert rows["1-64"].pop("distance") == "1-64"
    assert rows["1-64"] == pytest.approx({"tokens": 2 / 6, "bits_per_token": 6.0, "bits_per_byte": 1.2})
    assert set(rows) == {"1-64", "65-128", "over 2048", "first occurrence", "none"}
    assert sum(row["bits_per_byte"] for row in rows.values()) == pytest.approx(1.45)


def test_the_command_makes_a_model_measured_on_sliding_windows(corpus, tmp_path, monkeypatch, capsys):
    folder, made = corpus
    monkeypatch.setattr(packages, "PACKAGES", made)
    monkeypatch.setattr(code_measure, "CONTEXTS", (32, 64, 128))
    monkeypatch.setattr(code_measure, "PASSAGE", 64)
    small_recipe(monkeypatch, "tiny-code")
    arguments = ["--only", "tiny-code", "--packages", str(folder), "--out", str(tmp_path), "--steps", "64=2"]
    monkeypatch.setattr("sys.argv", ["train_tiny", *arguments, "--passages", "8"])
    train_tiny.main()
    model = tmp_path / "tiny-code"
    card = (model / "README.md").read_text()
    assert "| four | 1.0 | MIT | test |" in card
    assert "| 32 tokens |" in card
    assert text_model.read_record(model)["tokens"] == 2 * 2 * 2048
    figures = train_tiny.code_measure.measure(model, held_out.code(folder), lambda line: None, 8)
    stock = MptForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    encoder = AutoTokenizer.from_pretrained(model)
    text = held_out.code(folder)
    ids = torch.tensor([encoder.eos_token_id, *encoder.encode(text)])
    starts = torch.linspace(129, len(ids) - 64, 8).long().tolist()
    with torch.inference_mode():
        for row, context in zip(figures["contexts"], (32, 64, 128), strict=True):
            values = []
            for start in starts:
                nats = 0.0
                for target in range(start, start + 64):
                    end = start + ((target - start) // (context // 2) + 1) * (context // 2) - 1
                    logits = stock(ids[None, end - context : target]).logits[0, -1]
                    nats += F.cross_entropy(logits, ids[target]).item()
                size = len(encoder.decode(ids[start : start + 64].tolist()).encode())
                values.append(nats / math.log(2) / size)
            assert row["bits_per_byte"]["value"] == pytest.approx(sum(values) / 8, abs=1e-3)
    assert net.config(1).max_seq_len == text_model.MAX_LENGTH
