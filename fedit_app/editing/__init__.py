"""Locate-then-edit: requests and a model in, vectors out.

One request becomes one change of the weights in four steps. Read the modules in this order beside
MEMIT (Meng et al., arXiv 2210.07229, algorithm 1):

    values, optimise    value   v* = h0 + delta, so that the model says the target
    subjects            key     k_l, the input of W_l at the subject's last token
    memit, method       shift   r_l, the part of the way to v* that layer l goes
    solver              solve   Delta_l = R_l K_l^T (lambda C_l + K_l K_l^T)^-1

    contexts            the texts in which a value has to hold
    sites               where delta is added
    covariance          C_l, with its text in `corpus` and its files in `statistics`
    prefixes            not part of the method: computes what no delta changes only once
    rows, scratch       not part of the method: vectors and matrices that are read a part at a time
    value_store         not part of the method: finds values again that were computed before

`memit`, `pmet`, `alphaedit`, `memit_fe`, `blue`, `encore` and `betaedit` are the methods; each is
one `EditingMethod`.
"""
