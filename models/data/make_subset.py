"""Cuts the embedded data sets out of their sources; the same sources give the same bytes.

    python make_subset.py fashion-mnist FOLDER   the four .gz files of Fashion-MNIST (Debian: /usr/share/datasets/fashion-mnist)
    python make_subset.py shakespeare FILE       the plays as one Markdown text

Writes beside itself and prints the SHA-256 of what it wrote. Needs nothing but the standard library.
"""

import gzip
import hashlib
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent
COUNTS = {"train": 4000, "t10k": 2000}
# The nine complete plays at the head of the text; the next heading begins a part that is left out.
FIRST_HEADING, END_HEADING = "# A Midsummer Night's Dream", "# INTERMISSION"


def write(path, content):
    """Writes `content` as gzip without a time stamp, so that the file depends on nothing else."""
    packed = gzip.compress(content, 9, mtime=0)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed)
    print(f"{hashlib.sha256(packed).hexdigest()}  {path.name}  ({len(packed)} bytes, {len(content)} unpacked)")


def fashion_mnist(folder):
    for part, count in COUNTS.items():
        images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
        magic, _, height, width = struct.unpack(">4I", images[:16])
        assert magic == 0x803, "not an idx file of images"
        head = struct.pack(">4I", magic, count, height, width)
        write(HERE / f"fashion-mnist/{part}-images-idx3-ubyte.gz", head + images[16:][: count * height * width])

        labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        magic, _ = struct.unpack(">2I", labels[:8])
        assert magic == 0x801, "not an idx file of labels"
        write(HERE / f"fashion-mnist/{part}-labels-idx1-ubyte.gz", struct.pack(">2I", magic, count) + labels[8:][:count])


def shakespeare(source):
    lines = [line.rstrip() for line in source.read_text(encoding="utf-8").split("\n")]
    end = next(i for i, line in enumerate(lines) if line == END_HEADING)
    text = "\n".join(lines[lines.index(FIRST_HEADING) : end]).rstrip("\n") + "\n"
    write(HERE / "shakespeare/shakespeare.txt.gz", text.encode())


if __name__ == "__main__":
    {"fashion-mnist": fashion_mnist, "shakespeare": shakespeare}[sys.argv[1]](pathlib.Path(sys.argv[2]))
