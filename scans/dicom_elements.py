"""The elements of a DICOM file, walked over before SimpleITK reads it: do their lengths fit?

    check_elements("IM0001")        # raises VolumeError

GDCM takes the memory that an element claims, 4 GB of a file of 4 kB, before it finds out that the
file has ended.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from common.files import open_regular
from scans.slices import DAMAGED, VolumeError

# Value representations (PS3.5, 7.1.2) whose length takes 4 bytes in explicit transfer syntaxes.
LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT = set(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
UNDEFINED = 0xFFFFFFFF
ITEM, END_OF_ITEM, END_OF_SEQUENCE = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
SYNTAX, PIXELS = (0x0002, 0x0010), (0x7FE0, 0x0010)
IMPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{x}" for x in ("", ".1.99", ".2"))
FREE_BYTES = 64 << 20  # a cut file may claim so much more than it has; reading it says so
MAX_ELEMENTS = 1_000_000
MAX_DEPTH = 50  # of sequences in sequences


class Element(NamedTuple):
    tag: tuple[int, int]
    begin: int  # of its value, in the file
    length: int | None  # None: up to a mark of its end
    is_entered: bool  # it holds others, which come next


class Syntax(NamedTuple):
    """How elements are written."""

    order: str
    is_explicit: bool


class Container(NamedTuple):
    """A sequence or an item that is not at its end."""

    is_item: bool
    end: int | None  # None: up to a mark
    is_stream: bool  # of packed pixels, whose items hold pieces and no elements


def check_elements(path: str) -> None:
    """Raise VolumeError where an element claims far more than the file has, or they do not nest.

    What ends in the middle of an element, or is no DICOM at all, is left to its reader to refuse.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        for count, element in enumerate(elements(file, path)):
            if element.begin + (element.length or 0) > size + FREE_BYTES:
                tag = f"({element.tag[0]:04x},{element.tag[1]:04x})"
                text = f"{DAMAGED}: element {tag} claims {element.length:,} bytes of {size:,}"
                raise VolumeError(path, text)
            if count == MAX_ELEMENTS:
                raise VolumeError(path, f"{DAMAGED}: more than {MAX_ELEMENTS:,} elements")


def elements(file: BinaryIO, path: str) -> Iterator[Element]:
    """All of a file, also those of sequences, in their order. Raises VolumeError as above."""
    position = 132 if file.read(132)[128:] == b"DICM" else 0
    file.seek(position)
    syntax = Syntax("<", file.read(6)[4:].isalpha())  # until the file says it
    chosen, open_ones = syntax, []
    while True:
        while open_ones and open_ones[-1].end is not None and position >= open_ones[-1].end:
            open_ones.pop()
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        if head[:2] != b"\x02\0":  # the group of the syntax itself is always little and explicit
            syntax = chosen
        of_items = b"\xfe\xff" if syntax.order == "<" else b"\xff\xfe"  # group FFFE has no types
        is_typed = syntax.is_explicit and head[:2] != of_items
        if is_typed and head[4:6] not in LONG | SHORT:
            raise VolumeError(path, f"{DAMAGED}: a DICOM element of type {head[4:6]!r}")
        element = parse(head, position, syntax, bool(open_ones) and open_ones[-1].is_stream)
        yield element
        if not follow(element, open_ones):
            raise VolumeError(path, f"{DAMAGED}: its DICOM sequences do not nest")
        if element.tag == SYNTAX:
            file.seek(element.begin)
            uid = file.read(min(element.length or 0, 64)).decode("latin-1").strip("\0 ")
            if uid == DEFLATED:
                raise VolumeError(path, "a deflated DICOM file, which is not read: convert it")
            chosen = Syntax(">" if uid == BIG_ENDIAN else "<", uid != IMPLICIT)
        position = element.begin + (0 if element.is_entered else element.length)


def parse(head: bytes, position: int, syntax: Syntax, in_stream: bool) -> Element:
    """The element whose first 16 bytes these are."""
    tag = struct.unpack_from(f"{syntax.order}2H", head)
    kind, header = head[4:6], 8
    if tag[0] == 0xFFFE or not syntax.is_explicit:
        (length,) = struct.unpack_from(f"{syntax.order}I", head, 4)
    elif kind in LONG:
        header = 12
        (length,) = struct.unpack_from(f"{syntax.order}I", head.ljust(16, b"\0"), 8)
    else:
        (length,) = struct.unpack_from(f"{syntax.order}H", head, 6)
    if tag in (END_OF_ITEM, END_OF_SEQUENCE):
        return Element(tag, position + header, 0, False)
    has_items = head[header : header + 4] == struct.pack(f"{syntax.order}2H", *ITEM)
    unknown = kind == b"UN" or not syntax.is_explicit
    is_sequence = kind == b"SQ" or (unknown and has_items and tag != PIXELS)
    is_entered = length == UNDEFINED or is_sequence or (tag == ITEM and not in_stream)
    return Element(tag, position + header, None if length == UNDEFINED else length, is_entered)


def follow(element: Element, open_ones: list[Container]) -> bool:
    """Whether an element may come where these are open, of which it may open or close one."""
    last = open_ones[-1] if open_ones else None
    if element.tag in (END_OF_ITEM, END_OF_SEQUENCE):
        if last is None or last.end is not None or last.is_item != (element.tag == END_OF_ITEM):
            return False
        open_ones.pop()
        return True
    is_item = element.tag == ITEM
    if is_item != (last is not None and not last.is_item) or len(open_ones) == MAX_DEPTH:
        return False
    if element.is_entered:
        end = None if element.length is None else element.begin + element.length
        open_ones.append(Container(is_item, end, element.tag == PIXELS))
    return True
