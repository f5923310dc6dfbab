"""The images of one part of a source, decoded and fitted once and kept, and looked at before anybody relies on them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from morphogen.core.errors import InputError
from morphogen.core.progress import Progress
from morphogen.data.cache import Cache
from morphogen.data.clusters import ClusteredMaps
from morphogen.data.config import DataConfig
from morphogen.data.decode import Facts, Pixels
from morphogen.data.fitting import Fitting
from morphogen.data.formats import BadImage
from morphogen.data.remarks import remarks_of, sentences
from morphogen.data.source import ClassMap, PatchSource, Source
from morphogen.data.threads import map_ordered

UNREADABLE = "unreadable"  # instead of a digest


class Scan(NamedTuple):
    """The findings of one look at all images."""

    bad: list[BadImage]
    """Images of the part that cannot be used, and others that could not even be opened, in order."""
    digests: dict[str, str]
    """The sha256 of every image's content, by name."""
    scales: list[tuple[float, float] | None]
    """Micrometres a pixel of each slide of the part, where it says so."""
    pixels: dict[str, str]
    """The sha256 of every image's pixels, by name, where there are unlabelled images and all are decoded."""


class PreparedImages:
    """Source images by their number in the source, decoded and fitted (before random crops), through a cache."""

    def __init__(self, config: DataConfig, source: Source, fitting: Fitting, chosen: Sequence[int]) -> None:
        """chosen: the numbers of the part's images."""
        self.config, self.source, self.fitting = config, source, fitting
        shape = None if fitting.fit == "random" else (*config.size, config.channels)
        self._cache = Cache(len(chosen), config.cache_mb * 2**20, shape)
        self._slot = {i: slot for slot, i in enumerate(chosen)}
        self._maps: dict[int, ClassMap] = {}

    def read(self, i: int) -> Pixels:
        """Source image i. Raises BadImage."""
        pixels = self._cache.get(self._slot[i])
        return self._keep(i, self.source.read(i)) if pixels is None else pixels

    def read_map(self, i: int) -> ClassMap:
        """The map of source image i, fitted as the image. Raises InputError."""
        found = self._maps.get(i)
        if found is None:
            assert self.source.maps is not None
            try:
                found = self.fitting.prepared_map(self.source.maps.read(i))
            except BadImage as error:
                raise InputError(f"the map {error}") from None
            self._maps[i] = found
        return found

    def _check_map(self, i: int, size: tuple[int, int]) -> None:
        """Read the map of an image of (height, width). Raises InputError where it is not as large."""
        if self.source.maps is not None and not isinstance(self.source.maps, ClusteredMaps):
            self._maps[i] = self.fitting.prepared_map(self.source.maps.read(i, size))

    def _keep(self, i: int, decoded: Pixels) -> Pixels:
        return self._cache.put(self._slot[i], self.fitting.prepared(self.source.records[i].name, decoded))

    def scan(self, progress: bool, known: dict[str, str] | None) -> Scan:
        """Look at every image once, and say what is skipped and what is left out, if there is to be progress.

        known: the digests, where they have been found already; then only the images of this part are read.
        """
        bad: list[BadImage] = []
        digests: dict[str, str] = {}
        seen: dict[str, Facts] = {}
        pixels: dict[str, str] = {}

        def look(i: int) -> tuple[str, BadImage | None]:
            digest = UNREADABLE
            if known is not None and i not in self._slot:
                return digest, None
            try:
                content = self.source.content(i)
                if known is None:
                    digest = hashlib.sha256(content).hexdigest()
                if i in self._slot:
                    seen[self.source.records[i].name] = self._examine(i, content, pixels)
                elif self._compares_pixels:
                    with contextlib.suppress(BadImage):  # which whoever uses its part will say
                        self._note(i, self.source.examine(i, content)[0], pixels)
            except BadImage as error:
                return digest, error
            return digest, None

        with Progress("Checking images", len(self.source), quiet=not progress) as shown:
            results = map_ordered(look, len(self.source), shown)
            for record, (digest, error) in zip(self.source.records, results, strict=True):
                digests[record.name] = digest
                if error is not None:
                    bad.append(error)
                    if progress and len(bad) <= self.config.max_bad:
                        shown.say(f"skipped {error}")
            if progress:
                for sentence in sentences(remarks_of(self.source, dict(sorted(seen.items())))):
                    shown.say(sentence)
        return Scan(bad, known or digests, [facts.mpp for facts in seen.values()], pixels)

    @property
    def _compares_pixels(self) -> bool:
        """Whether images are compared by their pixels: one saved again is a copy, too."""
        whole = self.config.verify == "full" and not isinstance(self.source, PatchSource)
        return self.config.unlabelled is not None and whole

    def _note(self, i: int, decoded: Pixels, pixels: dict[str, str]) -> None:
        """Write down the hash of the pixels of image i."""
        if self._compares_pixels:
            content = repr(decoded.shape).encode() + decoded.tobytes()
            pixels[self.source.records[i].name] = hashlib.sha256(content).hexdigest()

    def _examine(self, i: int, content: bytes, pixels: dict[str, str]) -> Facts:
        """Read image i of the part as far as the configuration wants it looked at; what is not in its pixels.
        pixels: gets their hash.
        """
        if isinstance(self.source, PatchSource):
            self.source.prepare(i)
            return Facts(mpp=self.source.scale(i))
        if self.config.verify == "full":
            decoded, facts = self.source.examine(i, content)
            self._note(i, decoded, pixels)
            self._keep(i, decoded)
            self._check_map(i, decoded.shape[:2])
            return facts
        size = self.source.size(i, content)
        self.fitting.check_size(self.source.records[i].name, size)
        self._check_map(i, size)
        return Facts()

    def check_usable(self, bad: Sequence[BadImage]) -> None:
        """Raise InputError where nothing of the part is left, or more of it is bad than allowed."""
        total, name, skipped = len(self._slot), self.config.source, {error.name for error in bad}
        left = any(self.source.records[i].name not in skipped for i in self._slot)
        if left and len(bad) <= self.config.max_bad:
            return
        count = f"{len(bad)} of {total} images" if left else f"all {total} images"
        count, verb = ("its only image", "is") if total == 1 else (count, "are")
        limit = f", at most {self.config.max_bad} may be (--max-bad)" if left else ""
        if all(e.kind == "too small" for e in bad) and not self.source.sampled:
            wanted = "x".join(map(str, self.config.size))
            raise InputError(
                f"{name}: {count} {verb} smaller than --size {wanted}{limit}, such as {bad[0]}; "
                f"--size {self._largest()} takes them all"
            )
        named = "; ".join(str(e) for e in bad[:3]) + ("; ..." if len(bad) > 3 else "")
        raise InputError(f"{name}: {count} cannot be used{limit}: {named}")

    def _largest(self) -> int:
        """The largest square size that no readable image of this part is too small for."""
        sides: list[int] = []
        for i in self._slot:
            try:
                size = self.fitting.shrunk_size(self.source.size(i, self.source.content(i)))
            except BadImage:
                continue
            sides.append(max(size) if self.fitting.fit == "pad" else min(size))
        return min(sides)
