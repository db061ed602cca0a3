"""How many answers of a run over the demo's prompts equal their label.

python -m demo.score OUTPUT
"""

from pathlib import Path

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

COLUMNS = ["difficulty", "tier", "response", "label"]


@click.command()
@click.argument("output", type=click.Path(exists=True, file_okay=False))
def main(output: str) -> None:
    """Print exact match by difficulty and tier."""
    parts = sorted(Path(output, "rows").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(part, columns=COLUMNS) for part in parts])
    labelled = rows.filter(pc.is_valid(rows["label"]))
    right = pc.fill_null(pc.equal(labelled["response"], labelled["label"]), False)
    scored = labelled.append_column("right", right.cast(pa.int64()))
    groups = scored.group_by(["difficulty", "tier"]).aggregate(
        [("right", "mean"), ([], "count_all")]
    )
    table = Table("difficulty", "tier", "rows", "exact match", title="answers equal to their label")
    for group in groups.sort_by([("difficulty", "ascending"), ("tier", "ascending")]).to_pylist():
        share = f"{100 * group['right_mean']:.1f} %"
        table.add_row(group["difficulty"], group["tier"], str(group["count_all"]), share)
    Console().print(table)


if __name__ == "__main__":
    main()
