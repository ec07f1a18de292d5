"""Step 5: which of the model's targets takes this call. Pure: the draw comes from outside."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.call import Route


def choose(routes: Sequence[Route], draw: int) -> Route:
    """Among the routes of the lowest priority number, one by weight. `draw` is any number, each as likely."""
    if len(routes) == 1:
        return routes[0]
    first = min(route.priority for route in routes)
    able = [route for route in routes if route.priority == first]
    point = draw % sum(route.weight for route in able)
    for route in able:
        point -= route.weight
        if point < 0:
            return route
    raise AssertionError("weights do not add up")
