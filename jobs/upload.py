"""What of the working directory goes to the cluster with a job."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UsageProblem

_NEVER = (".git", ".venv", "venv", "__pycache__", "*.egg-info", ".*_cache", "out", "node_modules")
_MIB = 1 << 20
_SHOWN = 3


def excludes(own: Sequence[str], asked: Sequence[str]) -> list[str]:
    """All patterns; what .gitignore and .rayignore name is left out besides.

    Args:
        own: for the places that the run reads and writes.
        asked: by the configuration.
    """
    return [*_NEVER, *own, *asked]


def check_upload(
    folder: Path, patterns: Sequence[str], needed: Sequence[str], limit_mib: int
) -> None:
    """
    Args:
        needed: files that the job cannot start without, relative to the folder.

    Raises:
        UsageProblem: too much would be sent, or too little.
    """
    files = _sent(folder, patterns)
    for name in needed:
        if not (folder / name).is_file() or (folder / name) not in files:
            raise UsageProblem(
                f"{name}: is not sent to the cluster, because it lies outside of {folder} or a "
                "pattern leaves it out. To fix: run the command in the folder that holds it, and "
                "look at .gitignore, .rayignore and submit.excludes"
            )
    total = sum(files.values())
    if total > limit_mib * _MIB:
        largest = sorted(files, key=lambda file: -files[file])[:_SHOWN]
        listed = ", ".join(f"{f.relative_to(folder)} {files[f] / _MIB:,.1f} MiB" for f in largest)
        raise UsageProblem(
            f"submit.max_upload_mib: {folder} holds {total / _MIB:,.1f} MiB to send and the limit "
            f"is {limit_mib}; the largest are {listed}. To fix: name what the job does not need "
            "in submit.excludes, put models and data where every node finds them, or raise the "
            "limit"
        )


def _sent(folder: Path, patterns: Sequence[str]) -> dict[Path, int]:
    """The size in bytes of every file that Ray will pack; it is Ray that reads the patterns."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[Path, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path] = path.stat().st_size

    _dir_travel(folder, [_get_excludes(folder, list(patterns))], note, include_gitignore=True)
    return sizes
