"""The ClientApp: which action calls what. The same app runs simulated and on real SuperNodes."""

from flwr.clientapp import ClientApp

from nmoe_flower.clients import (
    alignment,
    control,
    evaluate,
    expert,
    fedce,
    fedsc,
    gate,
    head,
    joining,
)
from nmoe_flower.records import Action

__all__ = ["app"]

app = ClientApp()

app.query(Action.IDENTITY.verb)(joining.tell_partition)
app.query(Action.DESCRIBE.verb)(joining.tell_holdings)
app.query(Action.INITIAL.verb)(joining.tell_initial)
app.train(Action.FEDCE.verb)(fedce.train)
app.evaluate(Action.FEDCE_TEST.verb)(fedce.test)
app.train(Action.FEDSC.verb)(fedsc.train)
app.query(Action.CORRELATION.verb)(fedsc.correlate)
app.evaluate(Action.FEDSC_TEST.verb)(fedsc.test)
app.query(Action.LATENTS.verb)(head.cache_latents)
app.train(Action.HEAD.verb)(head.train)
app.train(Action.EXPERT.verb)(expert.train)
app.query(Action.ANSWER.verb)(expert.answer)
app.query(Action.KEEP_ANSWERS.verb)(expert.keep_answers)
app.train(Action.GATE.verb)(gate.train)
app.train(Action.ROLLING.verb)(gate.train_rolling)
app.query(Action.POOL.verb)(gate.pool)
app.train(Action.POOLED.verb)(gate.train_pooled)
app.train(Action.CONTROL.verb)(control.train)
app.evaluate(Action.ROUTE.verb)(evaluate.route)
app.query(Action.MIXTURE.verb)(alignment.tell_mixture)
app.query(Action.GIVEN.verb)(alignment.keep_given)
app.train(Action.ALIGNMENT.verb)(alignment.train)
app.query(Action.PROBE.verb)(alignment.probe)
app.evaluate(Action.ALIGNMENT_TEST.verb)(alignment.test)
