"""Measures step cost before the first request. A gateway then need not try each worker to price it. A worker wrongly priced too
high would never be tried again.
"""

import random
from array import array

from backends.engine.detokenizer import Decoder
from backends.engine.engine import Clock, Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.step_cost_model import StepCostModel
from backends.engine.work import Runner
from backends.wire import Sampling, Submit

PROMPTS = (8, 40, 150, 400, 900, 60, 250)
BATCHES = (1, 1, 2, 4)
OUTPUT = 12
SETUP_S, MAX_S = 0.5, 2.0
"""Seconds after which set-up costs are past, and seconds after which the profile ends. A large model on a slow machine then
starts with few measured steps and a less exact cost.
"""


def profile_steps(step_cost: StepCostModel, runner: Runner, decoder: Decoder, limits: RequestLimits, *, clock_ns: Clock) -> int:
    """Run prompts of several lengths, alone and together, through a temporary engine on the same, still unused pages.

    `step_cost` learns from all but the first step. Return the number of steps.
    """
    began_ns, rng, steps = clock_ns(), random.Random(0), 0
    engine = Engine(runner, decoder, limits, clock_ns=clock_ns, rng=rng)
    longest = max(1, min(limits.longest, limits.num_pages * limits.page_size // max(BATCHES)) - OUTPUT)
    number = 0
    for repeat in range(3):
        for batch in BATCHES:
            lengths = [min(PROMPTS[(number + i) % len(PROMPTS)], longest) for i in range(min(batch, limits.max_sequences))]
            for length in lengths:
                number += 1
                prompt = array("I", (rng.randrange(limits.vocab_size) for _ in range(length)))
                sampling = Sampling(max_tokens=OUTPUT, ignore_eos=True)
                engine.submit("profile", Submit(request=number, prompt=prompt.tobytes(), sampling=sampling))
            engine.busy_meter.idle_until(clock_ns())
            while engine.has_work:
                spent_s = (clock_ns() - began_ns) / 1e9
                if spent_s > MAX_S:
                    return steps
                if repeat > 0 or spent_s > SETUP_S:
                    engine.step_cost = step_cost
                engine.step()
                steps += 1
    return steps
