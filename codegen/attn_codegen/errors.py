# SPDX-License-Identifier: Apache-2.0
"""The generator's errors: each message says what, got, allowed, next, on one line."""

from __future__ import annotations


class CodegenError(Exception):
    """Base of every error that a user of the generator can cause or repair."""


class ConfigError(CodegenError, ValueError):
    """A configuration, a name or an axis value that means nothing or that no kernel serves."""


class SelectionError(CodegenError):
    """The chosen presets, names and filters select no kernel."""


class TuningError(CodegenError):
    """A tuning file that cannot be read."""


class ManifestError(CodegenError):
    """A manifest.json that cannot be read, or that must not be trusted."""


class OutputError(CodegenError):
    """The output folder cannot be written, or holds files that are not ours to touch."""


class LockedError(OutputError):
    """Another process is writing the same output folder."""


class RenderError(CodegenError):
    """The templates cannot be found, or do not fit the configuration."""
