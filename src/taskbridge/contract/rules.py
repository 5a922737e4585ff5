"""The rules of the specification, each in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A promise that holds on every target.

    Attributes:
        name: As the specification calls it, such as `R4`.
        text: What is promised.
        planned: Whether it is still to come: then no scenario has to prove it yet.
    """

    name: str
    text: str
    planned: bool = False


_TEXTS: Final[Mapping[str, str]] = {
    "S1": "A message is with the broker before send returns.",
    "S2": "Without an answering broker, send raises BrokerUnavailable within its timeout and tells what is uncertain.",
    "S3": "Arguments that do not fit the function are a TypeError where they are sent.",
    "S4": "Arguments arrive equal and of the same types; what cannot travel is refused with its path.",
    "S5": "Many calls go out in batches, and a failure names what was sent and what was not.",
    "S6": "A message over the size limit is refused before it leaves.",
    "S7": "Threads, forked processes and connections that died unnoticed send safely.",
    "S8": "A message says which version of the form it has, and a form from the future waits for a newer worker.",
    "S9": "Only declared tasks run, by their exact names; nothing found in a message is imported or unpickled.",
    "Q1": "What a call asks for wins over a route, a route over the decorator, the decorator over the default queue.",
    "Q2": "Only known queues are sent to; another name is refused, with the nearest known one.",
    "Q3": "A worker takes messages from its own queues and from no other.",
    "Q4": "Whatever comes back, after a delay or a failure, comes back to its own queue and priority.",
    "Q5": "Two engines share a broker without seeing one another's messages.",
    "Q6": "A message that no worker knows how to run waits, uses up no attempt, and is dead when its time is over.",
    "Q7": "What cannot be read is a dead letter that keeps its bytes.",
    "I1": "Whatever arrives on a queue ends as one message, done, discarded or dead, and ends nothing else.",
    "R1": "Attempts count every run from 1, and stop at max_attempts; None never stops.",
    "R2": "One table of policy, attempt and exception decides what becomes of a message.",
    "R3": "Delays grow as the policy says, with a jitter that depends on nothing but the message's id and the attempt.",
    "R4": "A retry is the same message with the next attempt number and the last error.",
    "R5": "A message is let go only when the broker has its retry; an outage delays it and loses nothing.",
    "R6": "A message that failed for good is one dead letter and one call of the dead hook.",
    "R7": "A delay that the task asks for is kept as it is, and costs an attempt like any other.",
    "R8": "A run that a shutdown interrupts is no attempt.",
    "R9": "With a store, a task of one attempt is started at most once.",
    "D1": "Nothing delayed starts before its time.",
    "D2": "On an idle worker, what is due starts within a second (RabbitMQ counts whole seconds, rounded up).",
    "D3": "What is delayed waits in the broker, not in a worker's memory.",
    "D4": "What is delayed outlives every worker.",
    "D5": "Delays reach up to eight years, and no further.",
    "D6": "A delay longer than the lease still runs once.",
    "P1": "There are four priorities by name, and normal is what a message has that asks for none.",
    "P2": "At most as many lower messages as a worker has slots and prefetched ones start before a higher one.",
    "A1": "A message is acknowledged only after its verdict was carried out.",
    "A2": "What a killed worker held starts elsewhere within the lease and ten seconds.",
    "A3": "A live worker keeps its message for as long as the task runs.",
    "A4": "A worker that is told to stop takes nothing new, lets tasks finish in its grace, and gives the rest back.",
    "A5": "A run that died with its worker is a failed attempt with the error WorkerLost.",
    "A6": "No message waits behind a long task while another worker is free.",
    "A7": "An attempt that has ended, or still runs, is not run again when it is delivered again.",
    "A8": "There is no moment at which killing a process loses a message.",
    "X1": "A message that would start after it has expired is discarded, with the reason expired.",
    "T1": "A run over its time limit is ended with TimeLimitExceeded, and is a failed attempt.",
    "T2": "A run that cannot be interrupted is ended together with its worker process, and is a crash.",
    "L1": "A dead letter tells all that is known, without the secrets that the application takes out.",
    "L2": "A replay starts a dead message again at attempt 1; it is dead or waits, never both and never neither.",
    "L3": "What is purged is gone for good, and nothing else is.",
    "ST1": "A message has a record from the moment it is sent, which says what it is doing.",
    "ST2": "A record tells of each attempt, where it ran and why it failed, and how the message ended.",
    "ST3": "A task with results=False is not recorded at all.",
    "RS1": "A result is what the task returned, equal and of the same type, on whichever engine it is asked for.",
    "RS2": "There is a result when all attempts are spent, and not before; a failure is raised as text.",
    "RS3": "A result that cannot be recorded, or is over the size limit, is a failed attempt.",
    "RS4": "Who waits for a result is woken; a thousand wait at once, and an event loop goes on.",
    "CA1": "What is cancelled before it starts, or between attempts, does not start.",
    "CA2": "A task that is cancelled while it runs sees that, and is not run again.",
    "O1": "Whether workers consume a queue is found out by asking them, and being busy is told from being gone.",
    "CR1": "What a schedule plans is sent once and not before its time, however many workers plan it.",
    "CR2": "A worker killed as it sends by a schedule changes nothing: another sends the same message, and one is run.",
    "CR3": "A time of day that a clock change skips is due once as that is over; one that comes twice, the first time.",
    "CR4": "What was due while nobody was there is caught up as the schedule says, and the rest is counted.",
    "CR5": "A schedule that is not to overlap sends nothing before its last message has ended.",
    "CR6": "A paused schedule sends nothing, whatever is started anew, and leaves out what was due meanwhile.",
    "I3": "What is read is checked, and sending checks the same: times in range, text, nesting up to 100 levels.",
    "H": "Hooks have the same names, order, arguments and threads everywhere, and a failing one changes nothing.",
    "E": "Variables of the environment that only the engine reads change nothing about a worker.",
    "C": "Coroutines run on one event loop a process, each with its own context.",
}

_PLANNED: Final = frozenset[str]()

RULES: Final[Mapping[str, Rule]] = {
    name: Rule(name=name, text=text, planned=name in _PLANNED) for name, text in _TEXTS.items()
}
"""Every rule, by name, in the specification's order of sections."""
