"""Speed, at the price of Dramatiq's inner parts: a work queue of ours in the place of a worker's own.

Nothing outside this package touches such parts. It is entered only with a Dramatiq with which it was tested and which
still has what it relies on; a worker takes messages the plain way else, by itself, and says why in one line of its log.
A middleware of the application's own is told all that it is told on the plain way, in the same order.
"""
