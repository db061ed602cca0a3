"""What an input is made of: its files, and the blocks that they are cut into."""

from dataclasses import dataclass

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True)
class InputFile:
    """One file of the input. `number` is its place in the sorted list."""

    number: int
    path: str
    format: str

    @property
    def seekable(self) -> bool:
        """Whether a block of it can be read without reading what stands before."""
        return self.format == "jsonl" and not self.path.endswith(COMPRESSED)


@dataclass(frozen=True)
class Block:
    """Rows that are read together and committed together.

    Attributes:
        name: names the block's part files; unique in the run and stable across restarts.
        first_row: ordinal of its first row in the file.
        row_group: Parquet: the row group that it lies in; `skip` rows of it come before.
        start, length: seekable text: its bytes.
    """

    name: str
    file: InputFile
    first_row: int
    num_rows: int
    row_group: int = 0
    skip: int = 0
    start: int = 0
    length: int = 0
