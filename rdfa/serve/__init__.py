"""An artifact behind the Open Inference Protocol (KServe v2, what Triton's clients speak).

refusals.py   what a request can be answered with beside a result
models.py     the two models: their tensors, the checks of a request, the detector's run over a batch
batching.py   which requests are computed together, and in what order
service.py    a request from its admission to its answer: bound, deadline, batch, metrics
wire.py       bodies of HTTP requests and answers <-> arrays
gate.py       the HTTP requests that are let in, and the path of those that infer
kserve_app.py the model server all this stands on
"""
