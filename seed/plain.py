"""Text from elsewhere as a terminal may show it: what would steer the terminal is spelt out instead.

Escape sequences can retitle a window, move the cursor over what was said before and, in some terminals, answer as if the
user had typed; marks of writing direction can make a path read as another. Nothing is printed here.
"""

import re

# C0 without tab and line end, DEL, C1 (some terminals obey them as UTF-8 too), and what turns the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def spell_controls(text: str) -> str:
    r"""Return text in which every control character is spelt out.

    Example:
        >>> spell_controls("evil\x1b[2J")
        'evil\\x1b[2J'
    """
    return STEERING.sub(_spell, text)


def is_utf8(text: str) -> bool:
    """Can the text be written down? A file's name that is not UTF-8 reaches Python as text that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _spell(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
