"""Economies as pure functions from parameters to impulse responses, exact, batched and differentiable."""

from mfk.data.worlds import new_keynesian, state_space, vector_autoregression
from mfk.data.worlds.new_keynesian import determinate, nk
from mfk.data.worlds.priors import draw_shocks, draw_theta
from mfk.data.worlds.state_space import lss, stable_lss
from mfk.data.worlds.vector_autoregression import simulate_var, stable_var, var
from mfk.data.worlds.world import (
    HORIZON,
    OBSERVABLES,
    Parameters,
    Shocks,
    World,
    bounds,
    check_world,
    make_world,
    manifest,
    superpose,
)

WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        make_world(
            "nk",
            nk,
            new_keynesian.PARAMETERS,
            new_keynesian.SHOCKS,
            valid=determinate,
            persistence=new_keynesian.persistence,
            volatility=new_keynesian.volatility,
            slice=new_keynesian.phi_pi,
            held_out="phi_pi",
        ),
        make_world(
            "var",
            var,
            vector_autoregression.PARAMETERS,
            vector_autoregression.SHOCKS,
            draw=vector_autoregression.draw_var,
            valid=vector_autoregression.valid_var,
            simulate=simulate_var,
            persistence=vector_autoregression.companion_radius,
            volatility=vector_autoregression.var_volatility,
            held_out="largest eigenvalue of the companion matrix",
        ),
        make_world(
            "lss",
            lss,
            state_space.PARAMETERS,
            state_space.SHOCKS,
            draw=state_space.draw_lss,
            valid=stable_lss,
            persistence=state_space.state_radius,
            volatility=state_space.lss_volatility,
            held_out="largest eigenvalue of A",
        ),
    )
}
"""The documented worlds by name."""

__all__ = [
    "HORIZON",
    "OBSERVABLES",
    "WORLDS",
    "Parameters",
    "Shocks",
    "World",
    "bounds",
    "check_world",
    "determinate",
    "draw_shocks",
    "draw_theta",
    "lss",
    "make_world",
    "manifest",
    "nk",
    "simulate_var",
    "stable_lss",
    "stable_var",
    "superpose",
    "var",
]
