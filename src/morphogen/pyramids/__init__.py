"""Images in several resolutions on disk: OME-Zarr, OME-TIFF, DeepZoom and scanners' files, read and written here.

`open_pyramid(path)` gives an object with `levels`, `mpp`, `channels` and `read_region(region, level)`.
"""

from morphogen.pyramids.opening import is_pyramid, open_pyramid
from morphogen.pyramids.pyramid import Pyramid
from morphogen.pyramids.region import Region

__all__ = ["Pyramid", "Region", "is_pyramid", "open_pyramid"]
