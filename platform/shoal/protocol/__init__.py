"""What workers and the controller say to each other: one class a message, and one place where it becomes bytes.

said.py        what a worker says; most of it are the very events that `decisions.decide` takes
orders.py      what one worker is told; used by its module's name, as `orders.Stop`
rendezvous.py  what the members of a membership ask to find each other, and the answers
greeting.py    how both sides prove that they are of one run before anything else is said
codec.py       a message to bytes and back
"""
