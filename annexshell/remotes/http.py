"""Opening a remote behind the HTTP API of git-annex (spec: http §9)."""

from __future__ import annotations

from annexshell.remotes.remote import AnnexHttp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.remotes.patience import Patience
    from annexshell.remotes.remote import Remote
    from annexshell.repository import Repository
    from annexshell.uuid import UUID


def open_http(repo: GitRepository, remote: Remote, target: UUID, highest: int, patience: Patience) -> Repository:
    """The repository TARGET on the server of REMOTE, at version HIGHEST at the most. Raises RemoteUnavailable."""
    # Not before such a remote is used: a client of HTTP takes long to import.
    from annexshell.http import urls
    from annexshell.http.client import HttpRepository
    from annexshell.http.credentials import Credentials, GitCredentials, url_for_credentials
    from annexshell.http.session import Session
    from annexshell.http.tls import Trust

    assert isinstance(remote.location, AnnexHttp)
    url = remote.location.url
    base = urls.parse(url)
    git_url = (remote.proxy or remote).setting(b"url")  # which is asked for passwords, as git itself does
    helpers = GitCredentials(repo, url_for_credentials(url, base, git_url), patience.connect)
    session = Session(base, Credentials(base, helpers), patience, Trust(repo))
    return HttpRepository(session, target, repo.uuid, highest)
