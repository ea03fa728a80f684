"""Texts against what good training text looks like: control characters, broken decoding, personal data."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

from deepseek_ops.core.config.data_checks import PiiKind

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters that no text needs; tab and line ends are fine."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _luhn(text: str) -> bool:
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    plain = text.replace(" ", "")
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


_PATTERNS: dict[PiiKind, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "email": (
        re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+\b"),
        lambda _text: True,
    ),
    "phone": (re.compile(r"(?<![\w.])\+\d{1,3}[ ./-]?(?:\(?\d{1,4}\)?[ ./-]?){2,5}\d{2,4}\b"), lambda _text: True),
    "ip_address": (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"), _public_address),
    "iban": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _iban),
    "card_number": (re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])"), _luhn),
    "api_key": (
        re.compile(
            r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|sk-[A-Za-z0-9_-]{20,}|xox[abp]-[A-Za-z0-9-]{10,})"
            r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
        ),
        lambda _text: True,
    ),
}
_MASKED_FROM = 4


def pii_in(text: str, kinds: Sequence[PiiKind]) -> tuple[PiiKind, str] | None:
    """Return (kind, masked match) of the first pattern of personal data in a text, or None.

    Card numbers, IBANs and addresses must pass their own checks, so that a long number alone is no finding.
    """
    for kind in kinds:
        pattern, is_one = _PATTERNS[kind]
        for match in pattern.finditer(text):
            if is_one(match[0]):
                return kind, match[0][:_MASKED_FROM] + "***"
    return None
