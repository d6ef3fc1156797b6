"""No committed file holds a note to oneself, a path of somebody's machine or the name of a package registry's host."""
import re
import unittest

import tree

# Spelled in pieces, so that this file passes its own check.
NOTES = ["TO" "DO", "FIX" "ME", "X" "XX"]
HOSTS = ["py" "pi.org", "python" "hosted.org", "npm" "js.org", "npm" "js.com", "crates" ".io", "deb." "debian.org",
         "golang" ".org", "maven" ".org"]
FORBIDDEN = re.compile(
    r"\b(?:" + "|".join(NOTES) + r")\b"
    r"|(?<![\w.])/work" r"/|(?<![\w./-])/(?:home|root)/\w"
    r"|(?:\.\./|(?<![\w./-]))shared" r"/"
    r"|" + "|".join(re.escape(host) for host in HOSTS))
# Made by tools, or bytes to be parsed: what they hold is not ours to word.
EXEMPT = ("model/text/Cargo.lock", "tests/golden/", "tests/fuzz/corpus/")


def violations(path, text):
    if path.startswith(EXEMPT):
        return []
    return [f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match.group(0)}" for match in FORBIDDEN.finditer(text)]


class Words(unittest.TestCase):
    def test_committed_files_hold_none(self):
        found = [each for path in tree.committed_files() for each in violations(path, tree.read_text(path) or "")]
        self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_each_kind_is_found(self):
        for text in ["/* TO" "DO: later */", "# FIX" "ME", "see /work" "/main/a.c", "../sha" "red/notes", "https://py" "pi.org/simple",
                     '"/home' '/me/models"']:
            self.assertEqual(len(violations("a.c", "\n" + text)), 1, text)

    def test_ordinary_text_passes(self):
        text = "mkstemp(\"/tmp/a-XXXXXX\"); a shared prefix; /models/home/x; network/; the METHOD of rework/ing"
        self.assertEqual(violations("a.c", text), [])


if __name__ == "__main__":
    unittest.main()
