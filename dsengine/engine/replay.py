"""`dsengine replay CAPTURE`: a captured step once more, on one CPU, and where its values stop being finite.

All ranks' rows are one batch here: what a method computes does not depend on the number of ranks, beyond rounding. A step of one rank on a CPU,
in fp32 or fp64, is repeated bit for bit by the same versions on the same kind of processor; TOLERANCE is for all others.
"""

import math
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dsengine import config as configuration
from dsengine.corpus.schema import Contract
from dsengine.engine import capture
from dsengine.engine.capture import Captured
from dsengine.engine.origin import Origin, finite, watched
from dsengine.engine.precision import place
from dsengine.engine.step import forward
from dsengine.engine.train import fresh_method
from dsengine.errors import RunError
from dsengine.nn.norm import set_groups
from dsengine.nn.stem import set_form

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "fp16": 5e-2, "bf16": 5e-2}  # of the loss, relative; another order of sums, another device


class Replayed(NamedTuple):
    """What came of a step that was captured."""

    captured: Captured
    scores: dict[str, float]
    origin: Origin
    gradient_norms: dict[str, float]  # of every trainable parameter; 0 where there was none
    bad_input: str  # what is not finite before anything is computed, "" where all is


def replay(folder: str | Path) -> Replayed:
    """Repeat the step in the capture `folder`. UsageError where there is none, RunError for a damaged one."""
    captured = capture.read(folder)
    about = captured.about
    precision = about["config"]["train"]["precision"]
    method = _method(captured, precision)
    threads = torch.get_num_threads()
    torch.set_num_threads(about["threads"])  # how sums are split among threads decides their rounding
    try:
        with watched(method) as origin:
            scores = forward(method, captured.batch, precision)
            scores["loss"].backward()
    finally:
        torch.set_num_threads(threads)
    norms = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in method.named_parameters() if p.requires_grad}
    scalars = {name: value.detach().double().item() for name, value in scores.items() if value.numel() == 1}
    return Replayed(captured, scalars, origin, norms, _bad_input(captured))


def verdict(replayed: Replayed) -> tuple[bool, str]:
    """Whether the loss is the captured one, and in words how near it is."""
    about, precision = replayed.captured.about, replayed.captured.about["config"]["train"]["precision"]
    then, now = about["scores"]["loss"], replayed.scores["loss"]
    if struct.pack("d", then) == struct.pack("d", now) or (math.isnan(then) and math.isnan(now)):
        return True, "equal to the captured one" + (" (both are not a number)" if math.isnan(then) else ", bit for bit")
    if not (math.isfinite(then) and math.isfinite(now)):
        return False, f"and the captured one is {then!r}"
    error, allowed = abs(now - then) / max(abs(then), 1e-12), TOLERANCE[precision]
    where = f"{precision}, captured on {about['device']}, {about['ranks']} rank{'s' * (about['ranks'] > 1)}"
    return error <= allowed, f"differs from the captured {then!r} by {error:.2g} of it; allowed {allowed:g} ({where})"


def lines(replayed: Replayed) -> list[str]:
    """What there is to say, for a terminal."""
    about = replayed.captured.about
    told = [f"captured   step {about['step'] + 1} of {about['config']['method']['name']}, {about['why']}"]
    samples = len(replayed.captured.batch.sample_id)
    told.append(f"           {samples} samples, {about['ranks']} rank{'s' * (about['ranks'] > 1)} on {about['device']}, "
                f"{about['config']['train']['precision']}, torch {about['versions'].get('torch')}")
    told.append(f"loss       {replayed.scores['loss']!r}, {verdict(replayed)[1]}")
    others = {name: value for name, value in replayed.scores.items() if name != "loss"}
    told += [f"           {name} {value!r}" for name, value in others.items()]
    told += [f"not finite {what}" for what in _first(replayed)]
    norms = sorted(replayed.gradient_norms.items(), key=lambda item: (math.isfinite(item[1]), -item[1] if math.isfinite(item[1]) else 0))
    told.append(f"gradients  norm of each of {len(norms)} parameters")
    return told + [f"  {value:12.5g}  {name}" for name, value in norms]


def _first(replayed: Replayed) -> list[str]:
    bad = [name for name, value in replayed.scores.items() if not math.isfinite(value)]
    told = [replayed.bad_input] if replayed.bad_input else []
    if replayed.origin.forward:
        told.append(f"first in {replayed.origin.forward}")
    elif bad:
        told.append(f"no module's output: what the method computes of them gives {', '.join(bad)}")
    elif any(not math.isfinite(norm) for norm in replayed.gradient_norms.values()):
        told.append(f"the gradient, first {replayed.origin.backward or 'where it reaches the parameters'}; every value of the forward pass is finite")
    return told or ["nothing: values and gradients of this step are finite"]


def _method(captured: Captured, precision: str) -> nn.Module:
    about = captured.about
    try:
        config, contract = configuration.resolve(about["config"]), Contract.from_json(about["contract"])
        method = place(fresh_method(config, contract.bands), precision, torch.device("cpu"))
        method.load_state_dict(captured.weights)
        set_groups(method, config.train.bn_group, len(captured.batch.sample_id))
        set_form(method, config.train.first_conv)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise RunError(f"capture {captured.path}: its method cannot be built by this version ({' '.join(str(error).split())})") from error
    return method.train()


def _bad_input(captured: Captured) -> str:
    weights = [name for name, value in captured.weights.items() if value.is_floating_point() and not finite(value)]
    told = [f"weights before the step: {', '.join(weights[:5])}"] if weights else []
    for k, view in enumerate(captured.batch.views):
        # In a series a date that is missing is NaN in all its bands, which encoders know.
        bad = ~torch.isfinite(view) if view.ndim != 3 else torch.isinf(view)
        rows = bad.flatten(1).any(1)
        if rows.any():
            told.append(f"view {k + 1} of samples {', '.join(map(str, captured.batch.sample_id[rows][:8].tolist()))}")
    return "; ".join(told)
