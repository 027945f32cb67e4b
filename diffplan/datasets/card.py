"""The data card of a store: where the data come from, under which licence, and what they are like; JSON and text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffplan.datasets.statistics import Statistics
from diffplan.datasets.store import TrajectoryStore
from diffplan.files import atomic_path, read_json, write_json
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

CARD, TEXT = "card.json", "CARD.md"
UNKNOWN = "not stated"


def write_card(
    store: TrajectoryStore,
    statistics: Statistics,
    licence: str = UNKNOWN,
    origin: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes ``card.json`` and ``CARD.md`` into the store's folder, and returns what they say.

    Args:
        store: the episodes.
        statistics: what they are like.
        licence: under which the data may be used.
        origin: who made them, or where they were found, in words.
        notes: how they were understood.
    """
    spec = store.spec
    card = {
        "source": store.source,
        "origin": origin or UNKNOWN,
        "licence": licence,
        "fingerprint": store.fingerprint,
        "dt_seconds": spec.dt,
        "roles": {name: _role(role) for name, role in spec.to_dict()["roles"].items()},
        "report": statistics.report(),
        "notes": list(notes),
    }
    write_json(store.path / CARD, card)
    with atomic_path(store.path / TEXT) as temporary:
        temporary.write_text(_text(card), encoding="utf-8", errors="backslashreplace")
    return card


def read_card(folder: str | Path) -> dict[str, Any] | None:
    """The card of a store, ``None`` where it has none. Raises ``ValueError`` when it is damaged."""
    path = Path(folder) / CARD
    if not path.exists():
        return None
    card = read_json(path)
    said = [card.get(key, "") for key in ("licence", "origin")] if isinstance(card, dict) else [None]
    notes = card.get("notes", ()) if isinstance(card, dict) else ()
    if not (isinstance(notes, list | tuple) and all(isinstance(one, str) for one in (*said, *notes))):
        raise ValueError(f"{path} is no data card: its licence, origin and notes are no words; mend or remove it.")
    return card


def write_derived(
    out: str | Path,
    spec: JointSpec,
    source: str,
    episodes: Iterable[Trajectory],
    parents: Mapping[Path, str],
    done: str,
) -> TrajectoryStore:
    """Writes a store made of others and, where one of these has a card, a card that says all that theirs said.

    Args:
        out: folder of the new store; also ``spec``, ``source`` and ``episodes``: see ``TrajectoryStore.write``.
        parents: the folders of the others, and the source of each.
        done: how the new one was made of them, for the notes.

    Raises:
        ValueError: a card is damaged (nothing is written then), or as ``TrajectoryStore.write``.
    """
    cards = {path: read_card(path) for path in parents}
    store = TrajectoryStore.write(out, spec, source, episodes)
    known = [card for card in cards.values() if card]
    if not known:
        return store

    def together(key: str) -> str:
        """What all say, or what each says of its own episodes."""
        said = {path: (card or {}).get(key, UNKNOWN) for path, card in cards.items()}
        first, *others = dict.fromkeys(said.values())
        return "; ".join(f"{one} ({parents[path]})" for path, one in said.items()) if others else first

    notes = dict.fromkeys(note for card in known for note in card.get("notes", ()))
    write_card(store, Statistics.of(spec, store), together("licence"), together("origin"), [*notes, done])
    return store


def _role(role: dict[str, Any]) -> dict[str, Any]:
    """What is known of a role, without what is not said."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in role.items() if value not in ((), 0.0)
    }


def _text(card: dict[str, Any]) -> str:
    report = card["report"]
    facts = {
        "episodes": f"{report['episodes']:,}, {report['steps']:,} steps of {card['dt_seconds']:g} s",
        "agents": f"{report['agents']['number']}, {report['agents']['at_once']['max']} at once at most",
        "constant entries": ", ".join(report["constant"]) or "none",
        "gaps in presence": f"{report['gaps']['number']}, the longest {report['gaps']['longest']} steps",
        "duplicate episodes": str(report["duplicates"]["number"]),
    }
    lines = [f"# {card['source'] or 'Episodes'}", "", f"Origin: {card['origin']}.", f"Licence: {card['licence']}.", ""]
    for name, widths in report["widths"].items():
        facts[f"role {name}"] = f"observes {widths['observation']} numbers, acts by {widths['action']}"
    lines += ["| | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in facts.items())]
    for title, entries in (("Suspicious jumps", report["jumps"]), ("How the files were understood", card["notes"])):
        lines += ["", f"## {title}", "", *(f"- {entry}" for entry in entries or ["none"])]
    return "\n".join(lines) + "\n"
