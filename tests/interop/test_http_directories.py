"""Repositories that real git-annex makes and changes below a directory that is served."""

from __future__ import annotations

import asyncio
import os
import shutil

from annexshell.http.repositories import Repositories, Served
from annexshell.uuid import UUID
from tests.interop.proxies import git_annex_knows_proxies


def find(repositories: Repositories, uuid: str) -> Served | None:
    return asyncio.run(repositories.find(UUID(uuid.encode())))


def test_repositories_come_and_go(tmp_path, make_server):
    first = make_server("first")
    later = make_server("later", bare=False, init=False)
    with Repositories.below([os.fsencode(tmp_path)]) as repositories:
        later.annex("init", "--quiet", "later")
        for repo in (first, later, make_server("second"), make_server("third", bare=False)):
            served = find(repositories, repo.uuid)
            assert served is not None and not served.proxied
            assert served.repo.path == os.fsencode(repo.path)
            assert served.repo.bare == (repo.git_dir == repo.path)
        gone = first.uuid
        shutil.rmtree(first.path)
        assert find(repositories, gone) is None
        assert find(repositories, later.uuid) is not None


def test_a_worktree_that_git_annex_has_changed(tmp_path, make_server):
    main = make_server("main", bare=False)
    (tmp_path / "top").mkdir()
    linked = tmp_path / "top" / "linked"
    main.git("worktree", "add", "--quiet", linked)
    main.annex("info", "--fast")
    with Repositories.below([os.fsencode(tmp_path / "top")]) as repositories:
        served = find(repositories, main.uuid)
        assert served is not None
        assert served.repo.commondir == os.fsencode(main.git_dir)


if git_annex_knows_proxies():

    def test_updateproxy(tmp_path, make_server):
        proxy, node = make_server("top/proxy", bare=False), make_server("node")
        uuid = node.uuid
        with (
            Repositories.below([os.fsencode(tmp_path / "top")]) as below,
            Repositories.single(os.fsencode(proxy.path)) as single,
        ):
            for repositories in (below, single):
                assert find(repositories, uuid) is None
            proxy.git("remote", "add", "node", node.path)
            proxy.git("config", "remote.node.annex-proxy", "true")
            proxy.annex("sync", "--no-content", "node", check=False)  # to get to know its uuid
            proxy.annex("updateproxy")
            for repositories in (below, single):
                served = find(repositories, uuid)
                assert served is not None and served.proxied
                assert served.repo.path == os.fsencode(proxy.path)
            proxy.git("config", "remote.node.annex-proxy", "false")
            proxy.annex("updateproxy")
            for repositories in (below, single):
                assert find(repositories, "unknown") is None
                assert find(repositories, uuid) is None
