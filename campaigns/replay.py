"""Every version once more, from the updates' own bytes and the recorded order and weights: bit for bit or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from campaigns.wire import Chain, Link, Tensors, read_body, read_tensors, sha256, write_blob


@dataclass(slots=True, eq=False)
class Replay:
    """What came of it. `lacking` counts versions that could not be made because the journal lacks a body; each is taken from
    its published blobs instead, and the replay goes on from there."""

    equal: int = 0
    lacking: int = 0
    different: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _State:
    model: Tensors
    momentum: Tensors


def replay(chain: Chain, contents: Mapping[str, bytes], blobs: Mapping[str, bytes]) -> Replay:
    """`contents` are updates by content hash, `blobs` models and states by theirs."""
    result = Replay()
    if not chain.links:
        return result
    rules = chain.plan
    state = _published(chain.links[0], rules, blobs)
    for before, link in zip(chain.links, chain.links[1:], strict=False):
        folded = [each for each in link.manifest["settled"] if each["outcome"] == "aggregated"]
        if link.version == before.version:
            if folded or link.manifest["model"] != before.manifest["model"]:
                result.different.append(f"version {link.version} changed without a new number")
            continue
        if state is not None and all(each["hash"] in contents for each in folded):
            _make_version(state, rules, folded, contents)
            _compare(result, state, rules, link)
        else:
            result.lacking += 1
            state = _published(link, rules, blobs)
    return result


def _make_version(
    state: _State, rules: Mapping[str, Any], folded: Sequence[Mapping[str, Any]], contents: Mapping[str, bytes]
) -> None:
    for array in state.momentum.values():
        np.multiply(array, np.float32(rules["aggregation"]["server_momentum"]), out=array)
    into = state.momentum or state.model
    for each in folded:
        weight = np.float32(float.fromhex(each["weight"])) * np.float32(float.fromhex(each["scale"]))
        delta = read_tensors(read_body(contents[each["hash"]]))
        for name, array in into.items():
            array += weight * delta[name]
    for name, array in state.momentum.items():
        state.model[name] += array


def _compare(result: Replay, state: _State, rules: Mapping[str, Any], link: Link) -> None:
    run_id, dtype = link.manifest["run_id"], rules["broadcast"]
    wide = {f"momentum/{name}": array for name, array in state.momentum.items()}
    if dtype != "float32":
        wide |= {f"model/{name}": array for name, array in state.model.items()}
    made = {"model": sha256(write_blob("model", run_id, state.model, dtype))}
    made |= {"state": sha256(write_blob("state", run_id, wide))} if wide else {}
    published = {kind: link.manifest[kind]["hash"] for kind in ("model", "state") if link.manifest[kind] is not None}
    if made == published:
        result.equal += 1
    else:
        result.different.append(f"version {link.version}: the replayed {' and '.join(made)} have other bits than those published")


def _published(link: Link, rules: Mapping[str, Any], blobs: Mapping[str, bytes]) -> _State | None:
    """The state that a link names, from its blobs; None where one of them is not there."""
    model = _named(link, "model", blobs)
    if model is None or (link.version > 0 and _named(link, "state", blobs) is None):
        return None
    wide = _named(link, "state", blobs) or {}
    known = {name: wide.get(f"model/{name}", array).copy() for name, array in model.items()}
    if not rules["aggregation"]["server_momentum"]:
        return _State(known, {})
    return _State(known, {name: wide.get(f"momentum/{name}", np.zeros_like(array)).copy() for name, array in known.items()})


def _named(link: Link, kind: str, blobs: Mapping[str, bytes]) -> Tensors | None:
    name = link.manifest[kind]
    if name is None:
        return {}
    return read_tensors(read_body(blobs[name["hash"]])) if name["hash"] in blobs else None
