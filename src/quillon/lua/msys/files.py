"""`msys.readfile`, and files for logs of a script's own: the only ways of a script to the file system."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from quillon.lua.msys.api import Api, Library, Object

library = Library()

LARGEST = 64 * 2**20  # octets


@dataclass
class File:
    """An open file of a script."""

    path: str
    descriptor: int

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def opened(self) -> int:
        """Raises ValueError once it is closed."""
        if self.descriptor < 0:
            raise ValueError(f"{self.path} is closed")
        return self.descriptor


def read(folder: str, name: str) -> bytes:
    """Raises OSError, ValueError for what is no regular file or too large."""
    path = Path(folder) / name.removeprefix("file://")
    if not path.is_file():
        raise FileNotFoundError(2, "no such file, or no regular one", str(path))
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST} octets")
    return path.read_bytes()


@library.of_api("msys.readfile")
async def readfile(api: Api, name: str) -> bytes | tuple[None, str]:
    """The content of a file, relative paths from the configuration's folder; or nil and words."""
    try:
        return await asyncio.to_thread(read, api.environment.folder, name)
    except (OSError, ValueError) as error:
        return None, str(error)


@library.of_api("msys.core.io_wrapper_open")
def open_file(api: Api, name: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Object | tuple[None, str]:
    """A file object with read, write and close; or nil and words."""
    path = str(Path(api.environment.folder) / name)
    try:
        return Object("file", File(path, os.open(path, int(flags) | os.O_CLOEXEC | os.O_NOCTTY, int(mode))))
    except OSError as error:
        return None, f"{path}: {error.strerror}"


@library.function("file:write", octets=True)
def write(file: File, data: bytes, size: int | None = None) -> int:
    """Write octets; how many were written."""
    return os.write(file.opened(), data if size is None else data[:size])


@library.function("file:read")
def read_some(file: File, size: int = 65536) -> bytes:
    """Read octets."""
    return os.read(file.opened(), min(int(size), LARGEST))


@library.function("file:close")
def close(file: File) -> None:
    """Close it; also done when nothing refers to it any more."""
    file.close()
