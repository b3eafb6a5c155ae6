"""All drawn figures by section with their captions on one page that works offline: figures.html."""

import argparse
from pathlib import Path

from dynatree import plugins
from dynatree.errors import UserError, reported
from dynatree.figures.shared import render
from dynatree.figures.shared.gallery import Picture, page
from dynatree.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, required=True, help="folder of what draw.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    arguments = parser.parse_args()
    with reported():
        sections: dict[str, list[Picture]] = {}
        for name in plugins.names("figures"):
            svg, caption, own = (arguments.figures / f"{name}{suffix}" for suffix in (".svg", ".caption.txt", ".html"))
            if svg.is_file() and caption.is_file():
                said, drawing = caption.read_text(encoding="utf-8").strip(), None
                if own.is_file():
                    drawing = render.drawing_of(own.read_text(encoding="utf-8"))
                picture = Picture(name, svg.read_text(encoding="utf-8"), said, drawing)
                sections.setdefault(plugins.load("figures", name).SECTION, []).append(picture)
        if not sections:
            raise UserError(f"--figures {arguments.figures}: no figure is drawn there; run `make all` first")
        write_text(arguments.out, page("DynaTree: all figures", dict(sorted(sections.items()))))
        print(arguments.out)


if __name__ == "__main__":
    main()
