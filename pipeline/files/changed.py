"""What other programs make of a file of ours, or leave in its place. Loads nothing heavy."""

from __future__ import annotations

import codecs

LFS_POINTER = b"version https://git-lfs"
"""Begins what stands in place of a file in a repository that was cloned without Git LFS."""
IS_LFS_POINTER = "it is a Git LFS pointer in place of the file. `git lfs pull` in its folder fetches it"
"""What a user is told of it."""


def changed_by_a_tool(content: bytes) -> str | None:
    """What another program has made of a text file of ours, and how to have it back; None where nothing shows it."""
    if content.startswith(LFS_POINTER):
        return IS_LFS_POINTER
    if content[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return (
            "it is a page of HTML in place of the file, such as a login page or the error of a server. Fetch it again, "
            "and look at what lies between here and the server"
        )
    if b"\r\n" in content:
        return (
            "its line ends were changed, as Git does (core.autocrlf) or a copy as text: copy the store again, byte for "
            "byte (in Git, with the line `* -text` in .gitattributes)"
        )
    if content.startswith(codecs.BOM_UTF8):
        return "an editor has put a byte order mark in front: copy the file again, byte for byte"
    return None
