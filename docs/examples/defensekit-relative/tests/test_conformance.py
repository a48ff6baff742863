"""What a scorer and a weight step promise, a test for each."""

from defensekit.testing import conformance

from defensekit_relative.relative import Relative
from defensekit_relative.steps import Clip

# Single dimensions, from the one that is taken last to the one that is taken first.
ORDER = [{"drift": 0.1}, {"drift": -0.2}, {"drift": 0.4}]

test_relative = conformance(Relative(), order=ORDER)
test_clip = conformance(Clip())
test_clip_that_resets = conformance(Clip(bound=0))
