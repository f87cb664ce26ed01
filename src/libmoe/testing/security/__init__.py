"""Can one request spoil the answer to another?  Buffer overflow in Mixture of Experts (arXiv 2402.05526), measured.

Where an expert has a limited number of places for a batch, requests that share the batch compete for them.  An attacker
who writes the others fills the experts that the victim needs.  Two things are necessary: limited places, and places
that are shared; taking away either ends the attack.

    report = audit_model(model)                       what answers depend on, as the model is served
    defences(model, report.batch_independent)         conditions of serving
    expose(model, requests, Setting(...), conditions) attacks under each of them
"""

from libmoe.testing.security.attacks import ATTACKS, Setting, copies, search
from libmoe.testing.security.exposure import STRANGERS, Exposure, defences, expose
from libmoe.testing.security.models import audit_model
from libmoe.testing.security.serving import Answer, Service, Serving, limited, serve

__all__ = [
    "ATTACKS",
    "STRANGERS",
    "Answer",
    "Exposure",
    "Service",
    "Serving",
    "Setting",
    "audit_model",
    "copies",
    "defences",
    "expose",
    "limited",
    "search",
    "serve",
]
