"""A deterministic simulation of an instance: the real core and pretend engines over a link that fails."""

from holdfast.chaos.simulation.run import Outcome, Simulation, simulate
from holdfast.chaos.simulation.scenario import Scenario, Weather, draw_scenario
from holdfast.chaos.simulation.world import LawBroken

__all__ = ["LawBroken", "Outcome", "Scenario", "Simulation", "Weather", "draw_scenario", "simulate"]
