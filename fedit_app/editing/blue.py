"""BLUE (Li et al., NeurIPS 2025, arXiv 2502.03748): only the first and the last edited layer.

Nothing is divided over layers, as the divided residual is what MEMIT loses: each of the two layers
is given its own target whole,

    change_l = v_l - h_l,   l = l_1, l_n

The authors optimise a value at either layer, one after the other. An MKV carries one: v* at the
first layer, whose target for the last one is what the model has there with v* in its place, as in
`memit_fe`. That only two layers are written is in `run_settings`: MKVs have two keys and shifts.
"""

from __future__ import annotations

from fedit_app.editing.memit_fe import changes, value_site
from fedit_app.editing.method import EditingMethod

BLUE = EditingMethod(value_site, changes)
