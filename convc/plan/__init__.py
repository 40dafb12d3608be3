"""From a graph to the plan that an artifact executes."""

from convc.plan.arena import place
from convc.plan.offers import explain_problem
from convc.plan.partition import partition
from convc.plan.select import select
from convc.plan.text import kernel_text, show

__all__ = ["explain_problem", "kernel_text", "partition", "place", "select", "show"]
