"""Which kinds of image files are read, which are known and are not, and opening one by what it begins with."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

BadKind = Literal["unreadable", "truncated", "too small", "oversized"]
KINDS = "JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF"

_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "jpg jpeg jpe jfif mpo png apng webp tif tiff bmp dib gif ppm pgm pbm pnm avif avifs".split()  # noqa: SIM905
)
_HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
# Pictures and films that people keep among their images; they are named, so that nobody believes them read.
_UNREAD = {
    "JPEG XL": ".jxl",
    "JPEG 2000": ".jp2 .j2k .jpf .jpx .jpc .j2c .jpm",
    "JPEG XR": ".jxr .wdp .hdp",
    "JPEG-LS": ".jls",
    "BPG": ".bpg",
    "FLIF": ".flif",
    "QOI": ".qoi",
    "TGA": ".tga .targa",
    "a vector drawing": ".svg .svgz .emf .wmf .ai .cdr",
    "a Photoshop file": ".psd .psb",
    "a painting program's file": ".xcf .kra .ora .afphoto .pdn .psp .pspimage .clip",
    "a camera's raw file": ".dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .orf .rw2 .rwl .raf .pef .srw .3fr .fff .iiq "
    ".erf .kdc .dcr .mrw .mef .mos .x3f .raw",
    "OpenEXR": ".exr",
    "Radiance HDR": ".hdr",
    "a float map": ".pfm",
    "an icon file": ".ico .icns .cur",
    "PCX": ".pcx .dcx",
    "SGI": ".sgi .rgb .rgba .bw",
    "a Sun raster": ".ras",
    "an X bitmap": ".xbm .xpm",
    "DDS": ".dds",
    "DICOM": ".dcm .dicom",
    "NIfTI": ".nii",
    "a volume": ".mha .mhd .nrrd .nhdr .mgz .mnc",
    "FITS": ".fits .fit .fts",
    "a NumPy array": ".npy .npz",
    "HDF5": ".h5 .hdf5 .hdf .he5",
    "a MATLAB file": ".mat",
    "a data set's table": ".parquet .arrow .feather .tfrecord .tfrecords .lmdb .mdb",
    "an archive": ".zip .tar .tgz .tbz2 .txz .7z .rar",
    "a PDF": ".pdf .eps .ps .djvu",
    "a microscope's file": ".czi .lif .lof .nd2 .oib .oif .oir .lsm .vsi .ets .zvi .ims .stk .dv .sld .xdce .flex",
    "an electron microscope's file": ".mrc .mrcs .dm3 .dm4 .emd .ser",
    "a film": ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .flv .ogv .3gp .mts .m2ts .mxf .flc .fli",
}
_UNREAD_SUFFIXES = {suffix: kind for kind, suffixes in _UNREAD.items() for suffix in suffixes.split()}
_FORMATS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "TIFF": "Tiff",
    "BMP": "Bmp",
    "DIB": "Bmp",
    "GIF": "Gif",
    "PPM": "Ppm",
    "AVIF": "Avif",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class BadImage(InputError):
    """One image cannot be used: `name`, what `kind` of trouble, and the `reason`; the message holds name and reason."""

    def __init__(self, name: str, reason: str, kind: BadKind = "unreadable") -> None:
        super().__init__(name, reason, kind)
        self.name, self.reason, self.kind = name, reason, kind

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def check_pixel_count(name: str, height: int, width: int, max_pixels: int) -> None:
    """Raise BadImage for an image of more than `max_pixels`, or of none."""
    if height * width > max_pixels:
        reason = f"{width}x{height} is {height * width:,} pixels; the limit is {max_pixels:,}"
        raise BadImage(name, reason, "oversized")
    if height * width == 0:
        raise BadImage(name, f"the image is empty ({width}x{height} pixels)")


def as_bad(name: str, error: BaseException) -> BadImage:
    """A library's error on a damaged file as a BadImage, its kind found by the words."""
    text = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    text = text.replace("<_io.BytesIO object", "file").split(" at 0x")[0]
    cut = any(
        word in text.lower() for word in ("truncated", "broken data stream", "unexpected end", "not enough image data")
    )
    return BadImage(name, f"the file is truncated ({text})" if cut else text, "truncated" if cut else "unreadable")


@cache
def has_heif() -> bool:
    """Whether HEIC files can be read."""
    return find_spec("pillow_heif") is not None


@cache
def _openers() -> dict[str, tuple[Any, Any]]:
    """By format, Pillow's class of its files and the test of the first 16 bytes."""
    from PIL import Image, features

    for plugin in set(_FORMATS.values()):
        import_module(f"PIL.{plugin}ImagePlugin")
    there = [name for name in _FORMATS if name not in ("AVIF", "WEBP") or features.check(name.lower())]
    return {name: Image.OPEN[name] for name in there if name in Image.OPEN}


def is_image(name: str) -> bool:
    """Whether the suffix is that of an image file that is read."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in _SUFFIXES or (suffix in _HEIF_SUFFIXES and has_heif())


def unread_kind(name: str) -> str | None:
    """The kind of a file that cannot be read, by its suffix; None for others."""
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix.lower()
    if suffix in _HEIF_SUFFIXES and not has_heif():
        return 'HEIC; pip install "morphogen[heif]" reads it'
    return _UNREAD_SUFFIXES.get(suffix)


def opened(data: bytes, name: str) -> Image.Image:
    """An encoded image with its header read and its pixels not. Raises BadImage.

    Formats are told by their first bytes. `Image.open` would do the same, but warns or raises by a limit on pixels that
    is one for the whole process; ours is the configuration's.
    """
    if not data:
        raise BadImage(name, "the file is empty")
    first = data[:16]
    try:
        if first[4:8] == b"ftyp" and first[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]:
            return _heif(data, name)
        for factory, accept in _openers().values():
            found = accept(first) if accept else True
            if found and not isinstance(found, str | bytes):
                try:
                    image: Image.Image = factory(BytesIO(data), "")
                    return image
                except SyntaxError:  # it is not of this format after all
                    continue
    except BadImage:
        raise
    except Exception as error:  # damaged headers raise errors of many types
        raise as_bad(name, error) from error
    raise BadImage(name, "not an image of a known format, or its header is damaged")


def _heif(data: bytes, name: str) -> Image.Image:
    if not has_heif():
        raise BadImage(name, 'it is HEIC, which needs pillow-heif: pip install "morphogen[heif]"')
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(BytesIO(data))
    return image


def frame_count(image: Image.Image) -> int:
    """How many frames or pages an opened file of Pillow's has; 1 where that cannot be told.

    The second picture in a camera's JPEG (a preview, a gain map) is no frame.
    """
    if image.format in ("MPO", "JPEG", "HEIF"):
        return 1
    try:
        return int(image.n_frames) if getattr(image, "is_animated", False) else 1  # type: ignore[attr-defined]
    except Exception:  # damaged files raise errors of many types; decoding says what is wrong
        return 1
