"""Draw one figure from the tables: <figure>.svg, .png, .html and .caption.txt."""

import argparse
from pathlib import Path

import pyarrow.parquet as parquet

from dynatree.errors import UserError, reported
from dynatree.figures.shared.render import render
from dynatree.files import write_text
from dynatree.plugins import load
from dynatree.tables.schema import TABLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder with <table>.parquet")
    parser.add_argument("--figure", required=True, help="name of a file in dynatree/figures")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    with reported():
        figure = load("figures", arguments.figure)
        paths = {name: arguments.tables / f"{name}.parquet" for name in figure.TABLES}
        if missing := [str(path) for path in paths.values() if not path.is_file()]:
            raise UserError(f"figure {arguments.figure}: missing {', '.join(missing)}; aggregate first")
        tables = {name: parquet.read_table(path) for name, path in paths.items()}
        for name, table in tables.items():
            if lacking := [column for column in TABLES[name].names if column not in table.column_names]:
                raise UserError(f"{paths[name]}: no column {', '.join(lacking)}, of another version; aggregate again")
        caption = figure.caption(tables)
        render(figure.draw(tables), arguments.out, arguments.figure, caption)
        write_text(arguments.out / f"{arguments.figure}.caption.txt", caption + "\n")


if __name__ == "__main__":
    main()
