"""A stranger's Parquet file, decoded in a process of its own: its header may lie about its size."""

from defensekit.utils.bounded import serve

AT_ONCE = 64  # rows that are decoded at once


def _tried(path: str) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for _ in file.iter_batches(AT_ONCE):
            pass


if __name__ == "__main__":
    serve(_tried)
