"""The methods that a comparison with the field is made of: `fedit compare --preset field`."""

from __future__ import annotations

FIELD = {
    "strategies": "fedit,local,central,fedavg,task-arithmetic,ties,collabedit",
    "editors": "memit,pmet,memit-fe,blue,encore,alphaedit,betaedit",
    "baselines": "ft-m,locft-bf,lora,in-context",
}
"""Options of the command: strategies with the first editor, editors with the first strategy."""
