"""The lines that a model repository needs in ``.gitattributes`` and ``.lfsconfig``, added to what is there."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT_PATTERNS = ("*.safetensors", "*.pt", "*.pth", "*.bin", "*.ckpt", "*.gguf")
"""Weights whose headers we read: Git shows a change of them as a change of tensors."""
BINARY_PATTERNS = ("*.onnx", "*.onnx_data", "*.engine", "*.plan", "*.npz", "*.npy", "*.parquet")
DIFF_DRIVER = "deepseek-weights"
MERGE_DRIVER = "deepseek-dataset"

# Two merge settings differ from what `git lfs track` writes. merge=lfs names a driver that nobody defines, so Git would
# merge the lines of two pointers and leave markers in one; merge=binary keeps ours whole and reports the conflict.
_WEIGHT_RULE = f"filter=lfs diff={DIFF_DRIVER} merge=binary -text"
_BINARY_RULE = "filter=lfs diff=lfs merge=binary -text"
_TEXT_RULES = (
    ("*", "text=auto eol=lf"),
    ("*.sh", "text eol=lf"),
    ("data/*.dataset.yaml", f"text eol=lf merge={MERGE_DRIVER}"),
)

LFS_CONFIG = """\
# Settings of Git LFS that every clone shares. From this file git-lfs takes only url, pushurl, fetchinclude,
# fetchexclude, locksverify, gitprotocol, allowincompletepush and skipdownloaderrors; it ignores every other key, with a
# warning on each command. So these are not here:
#   cachedir       is no setting of git-lfs. Objects are cached in .git/lfs/objects of each clone anyway; to keep them
#                  elsewhere, set it for your clone: git config lfs.storage /fast/disk/lfs
#   store address  is in .deepseek-ops.conf
#   transfer agent is set for your clone by `deepseek-ops init` or `deepseek-ops lfs install`
[lfs]
	# Patterns, as in fetchinclude = *.pt,*.bin, restrict what is downloaded to them: a *.safetensors file would stay a
	# pointer. This is everything; narrow it for one clone with: git config lfs.fetchinclude "models/small/**"
	fetchinclude = *
"""


@dataclass(frozen=True, slots=True)
class Merged:
    """A text with the lines that were missing."""

    text: str
    added: tuple[str, ...]
    kept: tuple[str, ...]
    """Patterns that have another rule already, which stays."""


def attribute_lines() -> list[tuple[str, str]]:
    """Return (pattern, rule) in file order; Git lets the last match decide."""
    weights = [(pattern, _WEIGHT_RULE) for pattern in WEIGHT_PATTERNS]
    return [*_TEXT_RULES, *weights, *((pattern, _BINARY_RULE) for pattern in BINARY_PATTERNS)]


def merge_attributes(text: str, *, replace: bool = False) -> Merged:
    """Return ``.gitattributes`` with our rules; a pattern that has rules keeps them unless ``replace``.

    The catch-all rule goes to the top: below a user's rules it would take them back.
    """
    lines = text.splitlines()
    present = {line.split()[0]: number for number, line in enumerate(lines) if line.strip() and line[0] != "#"}
    added, kept = [], []
    for pattern, rule in attribute_lines():
        wanted = f"{pattern} {rule}"
        if pattern not in present:
            added.append(wanted)
        elif lines[present[pattern]].split() != wanted.split():
            if replace:
                lines[present[pattern]] = wanted
                added.append(wanted)
            else:
                kept.append(pattern)
    fresh = [line for line in added if line.split()[0] not in present]
    top = [line for line in fresh if line.startswith("* ")]
    body = [*top, *lines, *(line for line in fresh if line not in top)]
    return Merged("\n".join(body) + "\n" if body else "", tuple(added), tuple(kept))
