"""Pictures of a folder in one small PNG: `python tools/contact_sheet.py RUN/predictions/overlays docs/predictions.png`."""

import argparse
from pathlib import Path

from PIL import Image

GAP = 12
PAPER = "white"


def contact_sheet(paths, columns, width):
    """Image files -> PIL image, `columns` side by side, each `width` pixels wide; a row is as high as its highest picture."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    pictures = [p.resize((width, round(p.height * width / p.width)), Image.Resampling.LANCZOS) for p in pictures]
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for i, picture in enumerate(row):
            sheet.paste(picture, (GAP + i * (width + GAP), top))
        top += height + GAP
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--names", nargs="*", help="file names in this order (default: the first of the folder)")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--width", type=int, default=300)
    args = parser.parse_args()
    paths = [args.folder / name for name in args.names or []] or sorted(args.folder.glob("*.png"))[: args.count]
    if not paths:
        parser.error(f"{args.folder} holds no PNG")
    sheet = contact_sheet(paths, args.columns, args.width)
    sheet.quantize(192, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f"Wrote {args.out}: {sheet.width} x {sheet.height}, {args.out.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
