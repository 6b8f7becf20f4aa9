"""From a recipe to a trained model.

Whoever trains on a CPU gets huge pages for large tensors, where Linux gives them: the gradient of a large vocabulary is
new memory at each step, and 25,000 pages of 4 KiB took an eighth of it. torch looks at this once, at its first tensor.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
