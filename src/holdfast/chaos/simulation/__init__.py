"""A deterministic simulation of an instance: the real core and pretend engines over a link that fails."""

from holdfast.chaos.simulation.conditions import Conditions, Weather, draw_conditions
from holdfast.chaos.simulation.run import RunSummary, Simulation, simulate
from holdfast.chaos.simulation.world import LawBroken

__all__ = ["Conditions", "LawBroken", "RunSummary", "Simulation", "Weather", "draw_conditions", "simulate"]
