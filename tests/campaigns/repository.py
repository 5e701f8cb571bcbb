"""What git says about the covered packages. Reads only; never takes git's locks."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from hyperha.errors import FailedError


@dataclass(frozen=True, slots=True)
class Repository:
    """A work tree."""

    root: Path

    def _git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "--no-optional-locks", "-C", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def head(self) -> str:
        """The commit that is checked out. Raises FailedError where there is none."""
        done = self._git("rev-parse", "--verify", "HEAD")
        if done.returncode != 0:
            raise FailedError(
                f"{self.root} has no commit: {done.stderr.strip()}",
                "A tally belongs to a commit: run campaigns in a clone of the repository.",
            )
        return done.stdout.strip()

    def changed(self, commit: str, paths: tuple[str, ...]) -> list[str]:
        """Files below these paths whose content is not that of the commit: by later commits, by
        changes in the work tree, or as new files. A commit that is not there is one entry."""
        compared = self._git("diff", "--name-only", commit, "--", *paths)
        if compared.returncode != 0:
            return [f"(commit {commit[:10]} is not in this repository)"]
        added = self._git("ls-files", "--others", "--exclude-standard", "--", *paths)
        return sorted({*compared.stdout.splitlines(), *added.stdout.splitlines()})
