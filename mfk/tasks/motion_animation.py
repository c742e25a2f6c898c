"""placeholder"""


def animate(*a, **k):
    pass
