"""A digest of compiled code, and what it imports.

Equal for two sources only if Python does the same with both. Where a line stands, what a comment or a docstring says,
and how lines are broken does not count: what is digested are the instructions, each with the constant, name or place
that it uses. Nothing of it depends on the process: what has no order in it is put in order.

It reads the instructions of CPython 3.11, the version that the project is bound to.
"""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

_LEFT_OUT = frozenset({dis.opmap["NOP"], dis.opmap["CACHE"]})
"""What does nothing: NOP stands for lines that a debugger can stop at."""
_EXTENDED = dis.EXTENDED_ARG
_CONSTANTS, _NAMES, _JUMPS = frozenset(dis.hasconst), frozenset(dis.hasname), frozenset(dis.hasjrel)
_BACKWARD = frozenset(number for name, number in dis.opmap.items() if "BACKWARD" in name)
_IF_FALSE = frozenset(number for name, number in dis.opmap.items() if "JUMP" in name and name.endswith("IF_FALSE"))
_GLOBAL, _CONST = dis.opmap["LOAD_GLOBAL"], dis.opmap["LOAD_CONST"]
_NAME, _OWN_NAME = dis.opmap["LOAD_NAME"], "__name__"
_IMPORT, _STORE = dis.opmap["IMPORT_NAME"], dis.opmap["STORE_NAME"]
_CHANGES = frozenset({dis.opmap["STORE_ATTR"], dis.opmap["STORE_SUBSCR"], dis.opmap["DELETE_ATTR"]})
_CALL, _UNUSED = dis.opmap["CALL"], dis.opmap["POP_TOP"]
_GOES = dis.opmap["JUMP_FORWARD"]
_UNNAMED = frozenset({"<module>", "<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>"})


_Instruction = tuple[int, Any]
"""An operation, and its constant, its name, or the number of the instruction it jumps to; else its plain argument."""


@dataclass(frozen=True)
class Compiled:
    """What a module's code is, does and names.

    Attributes:
        digest: 32 hex digits.
        imports: module, level and names of each import, those inside functions too; not those for type checkers.
        texts: every text among its constants; docstrings are not.
        has_code: whether it defines a function, a class or a lambda, or does more than give values names.
        names: of those that tell how it loads modules or finds files (`computed.TELLING`), the ones that it uses.
    """

    digest: str
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]
    texts: frozenset[str]
    has_code: bool
    names: frozenset[str] = frozenset()


def compiled(code: CodeType) -> Compiled:
    """What is to know of a module's code."""
    from almanac.code.computed import TELLING

    imports: list[tuple[str, int, tuple[str, ...]]] = []
    texts: set[str] = set()
    nested: list[tuple[str, set[str]]] = []
    digest = _digest(code, imports, texts, nested)
    has_code = any(name not in _UNNAMED for name, _ in nested) or _does_more(_instructions(code)[0])
    names = frozenset(name for _, used in nested for name in used) & TELLING
    return Compiled(digest, tuple(dict.fromkeys(imports)), frozenset(texts), has_code, names)


def _digest(
    code: CodeType,
    imports: list[tuple[str, int, tuple[str, ...]]],
    texts: set[str],
    nested: list[tuple[str, set[str]]],
) -> str:
    instructions, places = _instructions(code)
    nested.append((code.co_name, _names_used(code, instructions)))
    imports += _imports(instructions)
    said: dict[int, str] = {}
    parts = [
        f"{code.co_name} {code.co_qualname} {code.co_flags} {code.co_argcount} {code.co_posonlyargcount} "
        f"{code.co_kwonlyargcount} {code.co_varnames} {code.co_cellvars} {code.co_freevars} "
        f"{list(_handlers(code, places))}"
    ]

    def said_of(value: Any) -> str:
        if isinstance(value, CodeType):
            return f"code {_digest(value, imports, texts, nested)}"
        if isinstance(value, tuple):
            return f"({','.join(map(said_of, value))})"
        if isinstance(value, frozenset):
            return f"{{{','.join(sorted(map(said_of, value)))}}}"
        if isinstance(value, str):
            texts.add(value)
        return f"{type(value).__name__} {value!r}"

    for operation, of in instructions:
        if operation in _CONSTANTS:
            if id(of) not in said:
                said[id(of)] = said_of(of)
            of = said[id(of)]
        parts.append(f"{operation} {of}")
    return hashlib.blake2b("\n".join(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _does_more(instructions: list[_Instruction]) -> bool:
    """Whether a module does more than give values names: changes another's, or calls what gives it nothing."""
    called = False
    for operation, _ in instructions:
        if operation in _CHANGES or (called and operation == _UNUSED):
            return True
        called = operation == _CALL
    return False


def _names_used(code: CodeType, instructions: list[_Instruction]) -> set[str]:
    """The names that code uses; `__name__` only where it is the module's own, and no attribute of something else."""
    of_class = code.co_names[:2] == ("__name__", "__module__")  # the body of a class begins so, whatever stands in it
    own = [(_GLOBAL, _OWN_NAME)] if of_class else [(_GLOBAL, _OWN_NAME), (_NAME, _OWN_NAME)]
    loads = ((operation, of[0] if operation == _GLOBAL else of) for operation, of in instructions)
    return set(code.co_names) - (set() if any(load in own for load in loads) else {_OWN_NAME})


def _instructions(code: CodeType) -> tuple[list[_Instruction], list[int]]:
    """The instructions that do something, and for each place in the bytes the number of the next one.

    Raises:
        IndexError: the code is not of this Python.
    """
    data, constants, names = code.co_code, code.co_consts, code.co_names
    found: list[tuple[int, int, int]] = []
    places: list[int] = []
    extended = 0
    for place, operation in enumerate(data[::2]):
        places.append(len(found))
        if operation in _LEFT_OUT:
            continue
        argument = data[2 * place + 1] | extended
        if operation == _EXTENDED:
            extended = argument << 8
            continue
        extended = 0
        if operation == _STORE and names[argument] == "__doc__" and found and found[-1][0] == _CONST:
            found.pop()  # a module's or a class's docstring; a function's is a constant that no instruction uses
            continue
        found.append((operation, argument, place + 1))
    places.append(len(found))
    made: list[_Instruction] = []
    for operation, argument, after in found:
        of: Any = argument
        if operation in _CONSTANTS:
            of = constants[argument]
        elif operation == _GLOBAL:
            of = (names[argument >> 1], argument & 1)
        elif operation in _NAMES:
            of = names[argument]
        elif operation in _JUMPS:
            of = _goes_to(found, places, after - argument if operation in _BACKWARD else after + argument)
        made.append((operation, of))
    return made, places


def _goes_to(found: list[tuple[int, int, int]], places: list[int], place: int) -> int:
    """The instruction at which a jump ends: whether it goes there by another depends on how lines are broken."""
    number = places[place]
    while number < len(found) and found[number][0] == _GOES:
        number = places[found[number][2] + found[number][1]]
    return number


def _handlers(code: CodeType, places: list[int]) -> Iterator[tuple[int, ...]]:
    """Which instructions raise to which handler, by their numbers."""
    data = iter(code.co_exceptiontable)

    def number() -> int:
        byte = next(data)
        value = byte & 63
        while byte & 64:
            byte = next(data)
            value = value << 6 | byte & 63
        return value

    while True:
        try:
            start = number()
        except StopIteration:
            return
        length, target, depth = number(), number(), number()
        yield places[start], places[start + length], places[target], depth


def _imports(instructions: list[_Instruction]) -> Iterable[tuple[str, int, tuple[str, ...]]]:
    """Module, level and names of each import that can be executed."""
    skipped = 0
    for number, (operation, of) in enumerate(instructions):
        name = of[0] if operation == _GLOBAL else of
        if name == "TYPE_CHECKING" and number + 1 < len(instructions):
            following, target = instructions[number + 1]
            if following in _IF_FALSE:
                skipped = max(skipped, target)
        if operation == _IMPORT and number >= skipped:
            level, names = instructions[number - 2][1], instructions[number - 1][1]
            yield of, level, tuple(names or ())
