"""Parts of layers, by the names of weights in the tested architectures."""

import re

_END = r"\.weight$"

# A feed-forward layer is two matrices; between them are its neurons.
NEURONS_IN = re.compile(r"(intermediate\.dense|ffn(\.lin1)?|mlp\.(c_fc|gate_proj|up_proj))" + _END)
NEURONS_OUT = re.compile(r"((?<!attention\.)output\.dense|ffn\.lin2|ffn_output|mlp\.(down_proj|c_proj))" + _END)
# The output matrix of an attention layer: a head is a block of its columns.
HEADS_OUT = re.compile(
    r"(attention\.output\.dense|attention\.out_lin|attention\.dense|self_attn\.o_proj|\battn\.c_proj)" + _END
)
