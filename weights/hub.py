"""Uploads exports to the Hugging Face Hub: private by default, resumable, and nothing replaced.

The token comes from the hub's own places (the environment variable ``HF_TOKEN``, or the file that
``hf auth login`` writes); this program neither asks for one nor stores one. An upload that was
interrupted goes on where it was when it is started again: the hub knows what it has already.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.manifest import FILE_NAME, read_manifest
from lightx2v_sgmd.system.errors import UserError, shortened
from weights.public_names import public_job, public_name
from weights.verify import verify

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_JOB: Final = "job.yaml"
_MADE_BY_HUB: Final = ".gitattributes"
"""The file that the hub puts into every new repository."""


def check_repository(repository: str, private: bool = True, replace: bool = False) -> None:
    """Checks that an export can be pushed to a repository, before anything is written or sent.

    Args:
        repository: ``ORG/NAME``; it need not exist yet.
        private: True if the repository is to be private.
        replace: True if files of the same names may be replaced in a repository that has files.

    Raises:
        UserError: the name is none, there is no token, or the repository has other files, is public
            or cannot be reached.
    """
    if not _NAME.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UserError(
            f"push: {shortened(repository)!r} is not the name of a repository on the Hugging Face "
            "Hub; give ORG/NAME"
        )
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    with _explained(repository):
        if get_token() is None:
            raise UserError(
                f"push: {repository} needs a token that may write there, and there is none; run "
                "`hf auth login`, or set HF_TOKEN"
            )
        try:
            found = HfApi().model_info(repository)
        except RepositoryNotFoundError:
            return
    others = [f.rfilename for f in found.siblings or () if f.rfilename != _MADE_BY_HUB]
    if others and not replace:
        raise UserError(
            f"push: {repository} holds {shortened(others[0])} and {len(others) - 1} other files; "
            "choose another name, or add --overwrite to replace files of the same names"
        )
    if private and not found.private:
        raise UserError(
            f"push: {repository} exists and is public; choose another name, or --public"
        )
    if not private and found.private:
        raise UserError(
            f"push: {repository} exists and is private, and --public makes new repositories public "
            "alone; leave it out, or change the repository's visibility in its settings on the hub"
        )


def push(
    folder: str | Path,
    repository: str,
    private: bool = True,
    replace: bool = False,
    quiet: bool = False,
) -> str:
    """Uploads an exported folder to the Hugging Face Hub, and returns its address there.

    Args:
        folder: The folder that ``export`` wrote. Only the files that its manifest lists are
            uploaded; the manifest and the job there have the last names of a teacher's and its
            base's paths.
        repository: ``ORG/NAME``; it is made if it does not exist.
        private: Make it private.
        replace: Replace files of the same names in a repository that has files.
        quiet: No progress bar.

    Raises:
        UserError: the folder is no whole export, or the hub does not take it.
    """
    folder = Path(folder)
    problems = verify(folder)
    manifest = read_manifest(folder)
    if problems or manifest is None:
        raise UserError(f"{folder}: {problems[0]}; export the weights again, then push them")
    check_repository(repository, private, replace)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    files: dict[str, Path | bytes] = {name: folder / name for name in manifest.sha256}
    # The path of a teacher on this machine is for later exports here, and nobody else's business.
    sha256 = dict(manifest.sha256)
    if _JOB in files:
        job = public_job(folder / _JOB, pushed=True).encode()
        files[_JOB], sha256[_JOB] = job, hashlib.sha256(job).hexdigest()
    base = manifest.student_base
    public = replace_fields(
        manifest,
        teacher=public_name(manifest.teacher),
        student_base=None if base is None else public_name(base),
        sha256=sha256,
    )
    files[FILE_NAME] = public.to_text().encode()
    with _explained(repository), _bars(shown=not quiet):
        url: Any = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(
            repository,
            operations=[
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                for name, content in files.items()
            ],
            commit_message=f"Upload a {manifest.format} export of lightx2v-sgmd",
        )
    return str(url)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turns what the hub's client raises into one line for the user."""
    from huggingface_hub.errors import HfHubHTTPError, OIDCError

    # The error of the HTTP library that huggingface_hub uses, which changes between its versions.
    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]

    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reasons = {
            401: "the hub does not accept the token; run `hf auth login`",
            403: "the token may not write there; make one with write access to that organisation",
            404: "the hub has no such organisation, or the token may not see it; check its name",
        }
        reason = reasons.get(status or 0, f"the hub answered {status}; try again")
        raise UserError(f"push: {repository}: {reason}") from error
    except (http_error, OSError, ValueError, RuntimeError, OIDCError) as error:
        raise UserError(
            f"push: {repository} cannot be reached or written ({type(error).__name__}: "
            f"{shortened(str(error).strip() or 'no reason given', 120)}); check the network, then "
            "push the folder again"
        ) from error
