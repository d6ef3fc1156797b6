"""Each folder includes only itself and folders below it, so that the tree stays the architecture diagram."""
import re
import unittest

import tree

# Top to bottom. A folder may include those after it, except where EXCEPT says otherwise.
ORDER = ["cli", "bench", "coordinator", "worker", "attention-node", "model", "proto", "kernels", "base"]
# (including folder, included folder): the only headers of it that may be included.
EXCEPT = {
    ("coordinator", "worker"): [],  # through proto/ alone: they may be in another process
    ("coordinator", "attention-node"): [],
    ("worker", "attention-node"): ["attention.h", "layer_table.h", "selection.h"],
}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def violations(path, text):
    """What the includes of a file do wrong, as sentences."""
    folder = path.split("/")[0]
    if folder not in ORDER or not path.endswith((".c", ".h", ".cu", ".cuh", ".inc")):
        return []
    found = []
    for match in INCLUDE.finditer(text):
        header = match.group(1)
        line = text.count("\n", 0, match.start(1)) + 1
        target, _, name = header.partition("/")
        if target not in ORDER:
            found.append(f'{path}:{line}: "{header}" does not begin with a folder of the tree')
        elif ORDER.index(target) < ORDER.index(folder):
            found.append(f'{path}:{line}: {folder} is below {target} and may not include "{header}"')
        elif name not in EXCEPT.get((folder, target), [name]):
            found.append(f'{path}:{line}: {folder} may not include "{header}"')
    return found


class Includes(unittest.TestCase):
    def test_committed_files_include_downwards_only(self):
        files = tree.committed_files()
        self.assertTrue(any(path == "base/status.h" for path in files))
        found = [each for path in files for each in violations(path, tree.read_text(path) or "")]
        self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_upward_includes_are_found(self):
        self.assertEqual(violations("base/a.c", '#include <stdio.h>\n#include "model/config.h"\n'),
                         ['base/a.c:2: base is below model and may not include "model/config.h"'])
        self.assertEqual(len(violations("kernels/cpu/a.c", '  # include "proto/x.h"\n')), 1)

    def test_what_lies_below_or_beside_is_fine(self):
        self.assertEqual(violations("model/a.c", '#include "base/log.h"\n#include "model/text/text.h"\n'), [])
        self.assertEqual(violations("worker/a.c", '#include "attention-node/attention.h"\n#include "proto/w.h"\n'), [])
        self.assertEqual(violations("tests/a.c", '#include "cli/main.h"\n'), [])

    def test_the_seams_between_processes_are_kept(self):
        self.assertEqual(len(violations("worker/a.c", '#include "attention-node/engine.h"\n')), 1)
        self.assertEqual(len(violations("coordinator/a.c", '#include "attention-node/attention.h"\n')), 1)
        self.assertEqual(len(violations("coordinator/a.c", '#include "worker/worker.h"\n')), 1)

    def test_includes_start_at_the_root(self):
        self.assertEqual(len(violations("base/a.c", '#include "status.h"\n')), 1)


if __name__ == "__main__":
    unittest.main()
