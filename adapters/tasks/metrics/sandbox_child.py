"""The confined process of ``sandbox.py``; run as a script, it imports nothing of mergefront.

Reads {"program", "word", "seconds", "memory"} from stdin, confines itself, runs the program, and writes the word
to stdout when it ran to its end, or "error: ..." when it raised.
"""

import ctypes
import errno
import io
import json
import math
import os
import platform
import resource
import struct
import sys
from typing import Any

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER_MODE = 38, 22, 2
_LOAD, _EQUALS, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CALL, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREAD = 0x00010000
_CLONE3 = 435
_LONGEST_ANSWER = 1024
"""Bytes of the only file that is open for writing, the answer's."""

# System calls of the kernel by number: refused outright; refused without CLONE_THREAD; and those that open a file,
# with the place of their flags. openat2 hides them in memory, so that it is refused altogether.
_X86: dict[str, Any] = {
    "refused": "57 58 59 322 437 41 53 62 200 234 101 85 87 263 82 264 316 83 258 84 90 91 268 92 93 94 260 76 77 "
    "86 265 88 266 133 259 165 166 161 155 188 189 190 197 198 199 132 235 280 261 425 426 427 321 272 308 169 167 "
    "168 170 171 175 313 176 246 320 310 311 424 434 438 141 302 160 29 30 68 64 298 323 250 248 249 179 163 164 227 "
    "159 285 304 303 428 429 430 431 432 433 442 452 129 127 297 40",
    "clone": 56,
    "opens": {2: 1, 257: 2},
    "architecture": 0xC000003E,
}
_ARM: dict[str, Any] = {
    "refused": "221 281 437 198 199 129 130 131 117 35 38 276 34 37 36 33 52 53 54 55 45 46 40 39 51 41 5 6 7 14 15 "
    "16 88 425 426 427 280 97 268 142 224 225 161 162 105 273 106 104 294 270 271 424 434 438 140 261 164 194 195 186 "
    "190 241 282 219 217 218 60 89 170 112 171 47 265 264 428 429 430 431 432 433 442 452 138 240 71",
    "clone": 220,
    "opens": {56: 2},
    "architecture": 0xC00000B7,
}


def confine(seconds: float, memory: int) -> None:
    """Set the limits and the filter; raises ``OSError`` when the kernel refuses them."""
    whole = max(1, math.ceil(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LONGEST_ANSWER, _LONGEST_ANSWER))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = _filter(_ARM if platform.machine() == "aarch64" else _X86)
    program = ctypes.create_string_buffer(b"".join(code))
    header = struct.pack("@HP", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER_MODE, header, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refused the filter")


def _filter(machine: dict[str, Any]) -> list[bytes]:
    """The filter as classic BPF: 8 bytes an instruction (code, jump if true, jump if false, operand)."""

    def step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, operand)

    refuse = step(_RETURN, _REFUSE | errno.EPERM)
    code = [
        step(_LOAD, _ARCHITECTURE),
        step(_EQUALS, machine["architecture"], 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, _CALL),
        step(_AT_LEAST, 0x40000000, 0, 1),
        step(_RETURN, _KILL),
    ]
    for number in map(int, machine["refused"].split()):
        code += [step(_EQUALS, number, 0, 1), refuse]
    # "Not implemented" makes the C library start threads by clone instead.
    code += [step(_EQUALS, _CLONE3, 0, 1), step(_RETURN, _REFUSE | errno.ENOSYS)]
    code += [
        step(_EQUALS, machine["clone"], 0, 4),
        step(_LOAD, _ARGUMENTS),
        step(_ANY_BIT, _THREAD, 1, 0),
        refuse,
        step(_RETURN, _ALLOW),
    ]
    for number, place in machine["opens"].items():
        code += [
            step(_EQUALS, number, 0, 4),
            step(_LOAD, _ARGUMENTS + 8 * place),
            step(_ANY_BIT, _WRITING, 0, 1),
            refuse,
            step(_RETURN, _ALLOW),
        ]
    return [*code, step(_RETURN, _ALLOW)]


def main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    answer = os.dup(1)
    sys.stdout = sys.stderr = io.StringIO()
    sys.stdin = io.StringIO()
    os.close(1)
    try:
        confine(asked["seconds"], asked["memory"])
        compiled = compile(asked["program"], "<program>", "exec")
        exec(compiled, {"__name__": "__main__"})
        said = asked["word"]
    except BaseException as error:
        said = f"error: {type(error).__name__}: {error}"
    os.write(answer, said[:300].encode("utf-8", "replace")[:_LONGEST_ANSWER])


if __name__ == "__main__":
    main()
