"""Engines: three ways in which an expression becomes the activation of a model.

  table(per_octave=128, limit=128)    a cubic Hermite table of f and f'; costs the same for every f
  bytecode(length=16, parameters=4)   a program for a small machine; exact, with learnable scalars
  expression(mul(x, sigmoid(x)))      the expression itself, compiled ('jit'): a program of its own

Importing this package makes them known to `ActivationLayer` and `models.build`. For the first two
the expression is data: `Member.hp` has {'candidate': 'mul(x, sigmoid(x))', 'init_gain':
gain(parse('mul(x, sigmoid(x))'))}, all candidates train in one compiled program, and other
candidates of the next generation recompile nothing. Without a candidate they are ReLU.

Beside them stands a mixture of all candidates of a space, of which training chooses:

  relaxation(act_bench)               softmax over the operators; `harden` gives the expressions
"""

from model_lib.models import swept
from model_lib.search.engines.bytecode import Bytecode
from model_lib.search.engines.compiled import Compiled
from model_lib.search.engines.gain import gain
from model_lib.search.engines.kinks import kinks
from model_lib.search.engines.relaxation import Relaxation, harden
from model_lib.search.engines.table import Table

swept.register('table', Table.from_spec)
swept.register('bytecode', Bytecode.from_spec)
swept.register('expression', Compiled.from_spec)
swept.register('relaxation', Relaxation.from_spec)

__all__ = ['Bytecode', 'Compiled', 'Relaxation', 'Table', 'gain', 'harden', 'kinks']
