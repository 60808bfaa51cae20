"""Structures in Thrift's compact protocol, read as trees and written again: what a mutation of Parquet works on."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
NUMBERS = (0, 1, -1, 2, 3, 5, 7, 8, 9, 100, 127, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 33, (1 << 62))
WHOLE = (I16, I32, I64)

Structure = list[list[Any]]
"""Each field as [number, kind, value]; a list's value is [kind of its elements, elements]."""


def read(data: bytes, at: int = 0) -> tuple[Structure, int]:
    """The structure that begins there, and where it ends."""
    fields, number = Structure(), 0
    while data[at] & 15:
        head, at = data[at], at + 1
        if head >> 4:
            number += head >> 4
        else:
            zigzag, at = _varint(data, at)
            number = (zigzag >> 1) ^ -(zigzag & 1)
        value, at = _value(data, at, head & 15, in_list=False)
        fields.append([number, head & 15, value])
    return fields, at + 1


def write(fields: Structure) -> bytes:
    """Its bytes; fields in the order in which they are."""
    made, before = bytearray(), 0
    for number, kind, value in fields:
        step = number - before
        made += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _written_number(number)
        made += b"" if kind in (TRUE, FALSE) else _written(kind, value)
        before = number
    return bytes(made) + b"\0"


def structures(fields: Structure) -> Iterator[Structure]:
    """It, and all within it."""
    yield fields
    for _, kind, value in fields:
        if kind == STRUCT:
            yield from structures(value)
        elif kind in (LIST, SET) and value[0] == STRUCT:
            for one in value[1]:
                yield from structures(one)


def mutate(fields: Structure, random: Random) -> None:
    """Another number, kind or text; a field less, twice, or of another number; a list of another length."""
    if not fields:
        return
    fields = random.choice([one for one in structures(fields) if one])
    field = random.choice(fields)
    numbers = [one for one in fields if one[1] in WHOLE]
    match random.randrange(12):
        case 0:
            fields.remove(field)
        case 1:
            fields.insert(random.randrange(len(fields) + 1), list(field))
        case 2:
            field[0] = random.choice((1, 2, 3, 5, 7, 8, 12, 300, -4))
        case 3 if field[1] == BINARY:
            field[2] = random.choice((b"", b"\xff", b"cell", b"t2m", random.randbytes(12)))
        case 4 if field[1] in (LIST, SET):
            del field[2][1][random.randrange(len(field[2][1]) + 1) :]
        case 5 if field[1] in (LIST, SET) and field[2][1]:
            field[2][1].append(random.choice(field[2][1]))
        case 6:
            fields.append([20, *_nested(random)])
        case _ if numbers:
            number = random.choice(numbers)
            near = number[2] + random.choice((-1, 1, 8))
            number[2] = random.choice((*NUMBERS, near, near, near))


def _nested(random: Random) -> list[Any]:
    """A kind and a value of it: structures or lists within each other."""
    structure, listed, deep = Structure(), [BYTE, []], random.choice((1, 10, 18, 20, 40))
    for _ in range(deep):
        structure, listed = [[1, STRUCT, structure]], [LIST, [listed]]
    return random.choice(([STRUCT, structure], [LIST, listed]))


def _value(data: bytes, at: int, kind: int, *, in_list: bool) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return (data[at], at + 1) if in_list else (None, at)
    if kind == BYTE:
        return data[at], at + 1
    if kind in WHOLE:
        zigzag, at = _varint(data, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == DOUBLE:
        return data[at : at + 8], at + 8
    if kind == BINARY:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    if kind == STRUCT:
        return read(data, at)
    count, element, at = data[at] >> 4, data[at] & 15, at + 1
    if count == 15:
        count, at = _varint(data, at)
    found = []
    for _ in range(count):
        one, at = _value(data, at, element, in_list=True)
        found.append(one)
    return [element, found], at


def _written(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE, BYTE):
        return bytes([value])
    if kind in WHOLE:
        return _written_number(value)
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return _written_varint(len(value)) + bytes(value)
    if kind == STRUCT:
        return write(value)
    element, many = value
    head = bytes([len(many) << 4 | element]) if len(many) < 15 else bytes([240 | element]) + _written_varint(len(many))
    return head + b"".join(_written(element, one) for one in many)


def _written_number(value: int) -> bytes:
    return _written_varint((value << 1 ^ value >> 63) & (1 << 64) - 1)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return number, at


def _written_varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
