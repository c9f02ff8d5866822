"""Every kind of file name, backend and size that a client may bring."""

from __future__ import annotations

import os

import pytest

from tests.interop.harness import Repo, pseudorandom

NAMES = [
    b"plain",
    b"two words",
    b"tab\there",
    b"new\nline",
    b"'single' and \"double\"",
    b"back\\slash",
    b"-leading dash",
    b"--",
    b"100% of % %%",
    b"a&b&s&&",
    b"semi;colon $HOME `id` *?",
    b"non-utf8 \xff\xfe\x80",
    "Grüße 日本語".encode(),
    "wide　space".encode(),
    "no-break\u00a0space".encode(),
    b"dir/sub dir/file",
    b"CON:aux",
    b".hidden",
    b"trailing space ",
    b"x" * 200 + b".txt",
]

BACKENDS = [
    *("SHA256E", "SHA512", "SHA1", "MD5E", "SHA224", "SHA384E", "SHA3_256", "SHA3_512E", "SKEIN256E", "SKEIN512"),
    *("BLAKE2B512E", "BLAKE2B160", "BLAKE2BP512", "BLAKE2S256", "BLAKE2SP224E", "BLAKE3_256", "BLAKE3_256E"),
    *("XXH3", "XXH3E", "WORM", "URL", "VURL"),
]

MEBI = 1 << 20
SIZES = [0, 1, 32751, 32752, 32753, MEBI, 3 * MEBI + 1]


def keys_of_files(repo: Repo) -> dict[bytes, str]:
    words = repo.annex("find", "--anything", "--format=${file}\\000${key}\\000").out.split("\0")[:-1]
    return {os.fsencode(file): key for file, key in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize("backend", ["SHA256E", "WORM"])  # WORM keys have the file name in them
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "nonbare"])
def test_file_names(make_server, make_client, bare, backend):
    server = make_server(bare=bare)
    one, two = make_client(server, "one"), make_client(server, "two")
    for number, name in enumerate(NAMES):
        path = os.path.join(os.fsencode(one.path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"content of file %d" % number)
    one.annex("add", "--quiet", "-c", "annex.dotfiles=true", f"--backend={backend}", ".")
    keys = keys_of_files(one)
    assert set(keys) == set(NAMES)
    one.annex("sync", "--content")
    for number, name in enumerate(NAMES):
        assert server.content(keys[name]) == b"content of file %d" % number
    two.annex("sync", "--no-content")
    two.annex("get", ".")
    for number, name in enumerate(NAMES):
        with open(os.path.join(os.fsencode(two.path), name), "rb") as file:
            assert file.read() == b"content of file %d" % number
    two.annex("sync", "--no-content")
    everywhere = {server.uuid, one.uuid, two.uuid}
    assert server.all_locations() == dict.fromkeys(keys.values(), everywhere)
    two.annex("drop", "--from=origin", ".")
    assert not [key for key in keys.values() if server.content(key) is not None]


def test_backends(make_pair):
    server, client = make_pair()
    known = client.annex("version").out.split("key/value backends: ")[1].splitlines()[0].split()
    addable = [name for name in BACKENDS if name in known and name not in {"URL", "VURL"}]
    assert len(addable) >= 8
    contents = {}
    for number, backend in enumerate(addable):
        content = pseudorandom(70_000 + number)
        key = client.add(f"{backend}.dat", content, backend=backend)
        assert key.startswith(f"{backend}-s")
        contents[key] = content
    client.commit()
    client.annex("copy", "--to=origin")
    assert {key: server.content(key) for key in contents} == contents
    client.annex("drop")
    client.annex("get")
    assert {key: client.content(key) for key in contents} == contents
    assert not server.leftovers()


@pytest.mark.parametrize(
    "key", ["URL--http&c%%example.com%a file", "URL-s5--http://example.com/sized", "WORM--unsized"]
)
def test_keys_that_say_little_about_their_content(make_pair, tmp_path, key):
    server, client = make_pair()
    (tmp_path / "content").write_bytes(b"12345")
    client.annex("fromkey", "--force", key, "file")
    canonical = client.key_of("file")
    client.annex("setkey", canonical, tmp_path / "content")
    client.commit()
    client.annex("copy", "--to=origin", "file")
    assert server.content(canonical) == b"12345"
    client.annex("drop", "file")
    client.annex("get", "file")
    assert client.content(canonical) == b"12345"
    client.annex("fsck", "--from=origin", "file")
    client.annex("drop", "--from=origin", "file")
    assert server.content(canonical) is None


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "nonbare"])
def test_sizes(make_pair, bare):
    server, client = make_pair(bare=bare)
    contents = {}
    for size in SIZES:
        content = pseudorandom(size)
        contents[client.add(f"file{size}", content)] = content
    client.commit()
    client.annex("copy", "--to=origin")
    assert {key: server.content(key) for key in contents} == contents
    client.annex("drop")
    client.annex("get")
    assert {key: client.content(key) for key in contents} == contents


def test_a_large_file(make_pair):
    server, client = make_pair()
    content = pseudorandom(100 * MEBI)
    key = client.add("large", content)
    client.commit()
    client.annex("move", "--to=origin", "large")
    assert server.content(key) == content
    client.annex("move", "--from=origin", "large")
    assert client.content(key) == content
    assert server.content(key) is None
