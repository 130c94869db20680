"""Searches a Space under a budget: what is proposed, evaluated, written down, chosen and reported.

`search` runs a `Problem`: a Space, a `Goal`, and functions that give a Subnet's figures; it returns a `Found`.
"""

from lissome.engine.search.found import Found as Found
from lissome.engine.search.found import Point as Point
from lissome.engine.search.goal import Bound as Bound
from lissome.engine.search.goal import Goal as Goal
from lissome.engine.search.goal import Objective as Objective
from lissome.engine.search.problem import Problem as Problem
from lissome.engine.search.problem import require_reachable as require_reachable
from lissome.engine.search.run import SearchConfig as SearchConfig
from lissome.engine.search.run import search as search
from lissome.engine.search.run import work as work
