"""Makes the images of this folder with Pillow 13: 16 x 16 pixels in four squares, red, green, blue and a light yellow.

Each has something that this project's encoder cannot write. Tests change bytes of them where that makes another kind.
"""

import io
import struct

import numpy
from PIL import Image

SIDE = 16
pixels = numpy.zeros((SIDE, SIDE, 3), numpy.uint8)
pixels[:8, :8], pixels[:8, 8:] = (255, 0, 0), (0, 255, 0)
pixels[8:, :8], pixels[8:, 8:] = (0, 0, 255), (255, 255, 102)
image = Image.fromarray(pixels)

orientation = Image.Exif()
orientation[0x112] = 6
thumbnail = io.BytesIO()
image.resize((8, 8)).save(thumbnail, "JPEG")
tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, 6, 0, 0)

image.save("exif.png", exif=orientation)
image.save("exif.webp", exif=orientation, lossless=True)
image.save("exif.tif", tiffinfo={0x112: 6})
image.save("exif.jpg", exif=b"Exif\0\0" + tiff + thumbnail.getvalue(), subsampling=0)
image.resize((48, 48), Image.NEAREST).save("progressive.jpg", progressive=True, subsampling=2, optimize=True)
image.resize((48, 48), Image.NEAREST).save("restarts.jpg", subsampling=2, restart_marker_blocks=1)
image.resize((48, 48), Image.NEAREST).save("both.jpg", progressive=True, subsampling=1, restart_marker_blocks=2)
image.convert("CMYK").save("cmyk.jpg")

palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
palette.save("palette.png", bits=2, transparency=bytes([255, 0, 128, 255]))
palette.save("palette.gif", save_all=True, append_images=[Image.new("P", image.size, 1)])
image.convert("L").point(lambda value: 255 * (value > 100)).convert("1").save("one_bit.png")
image.save("animated.webp", save_all=True, append_images=[Image.new("RGB", image.size)], lossless=True)
image.save("animated.png", save_all=True, append_images=[Image.new("RGB", image.size)])
