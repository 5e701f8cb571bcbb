"""The one registry of what an operator can do: keys, words, levels, when allowed, what is sent.

Menu, footer, palette, help, the read-only lock, the key sheet and the tests read this table.
Whether a command makes sense is decided by the node (`allowed`, `refused`, `losses` of its side);
nothing of those rules is repeated here.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from hyperha.api.wire import (
    ActionOptions,
    ActionRequest,
    CheckerChange,
    Expectation,
    ModuleNodeView,
)
from hyperha.domain import Readiness, Role
from tui.model.console import ConsoleModel
from tui.model.formatting import age_text

FOOTER_KEYS_MOST = 7


class Level(IntEnum):
    """How much must be confirmed."""

    VIEW = 0
    """Nothing is changed: no dialog."""
    LIGHT = 1
    """One question, y or n."""
    CONFIRM = 2
    """The target, both nodes' state, the effect; Enter alone cancels."""
    LOSS = 3
    """Data or service may be lost: the module's name is typed as well."""


class Group(StrEnum):
    """Where an action belongs in menu and help."""

    COMMAND = "Commands"
    SETTING = "Settings"
    CHECKER = "Checkers"
    SAFETY = "Safety copies"
    VIEW = "View"
    LOG = "Log"
    CONSOLE = "Console"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that an operator can do."""

    id: str
    title: str
    keys: tuple[str, ...]
    group: Group
    level: Level = Level.VIEW
    verb: str = ""
    """Of the API; empty for what only changes the view."""
    effect: str = ""
    """What it does, with {module}, {node}, {peer}."""
    spares: str = ""
    """What it does not do."""
    footer: int = 0
    """Place in the footer, 1 first; 0: not there."""
    both_nodes: bool = False
    """A setting that each node keeps: sent to both."""
    loss: str = ""
    """What it always takes away; empty when the node knows better."""

    @property
    def key(self) -> str:
        """The key that help and footer name."""
        return self.keys[0] if self.keys else ""

    @property
    def changes(self) -> bool:
        """Whether the read-only lock concerns it."""
        return self.level > Level.VIEW


def _command(
    verb: str, title: str, key: str, level: Level, effect: str, spares: str, footer: int = 0
) -> Action:
    keys = (key,) if key else ()
    return Action(verb, title, keys, Group.COMMAND, level, verb, effect, spares, footer)


def _setting(verb: str, title: str, level: Level, effect: str, spares: str) -> Action:
    both = verb.startswith("failover")
    return Action(verb, title, (), Group.SETTING, level, verb, effect, spares, both_nodes=both)


def _view(
    id_: str, title: str, keys: str, group: Group = Group.VIEW, footer: int = 0, effect: str = ""
) -> Action:
    return Action(id_, title, tuple(keys.split()), group, effect=effect, footer=footer)


COMMANDS = (
    _command(
        "start",
        "Start",
        "s",
        Level.LIGHT,
        "Starts {module} on {node}; the rules decide whether it runs the VM or follows {peer}.",
        "It gives up no data and moves no VM that runs on {peer}.",
        footer=2,
    ),
    _command(
        "stop",
        "Stop",
        "x",
        Level.CONFIRM,
        "Stops {module} on {node}. If the VM runs there, it is shut down, and {peer} takes over "
        "when it has an equal copy.",
        "It deletes nothing and does not stop {module} on {peer}.",
        footer=3,
    ),
    _command(
        "swap",
        "Swap",
        "w",
        Level.CONFIRM,
        "Moves the VM of {module} from {node} to {peer}: stopped here, started there; the service "
        "is interrupted meanwhile.",
        "It loses no write: it begins only while {peer} has an equal copy.",
        footer=4,
    ),
    _command(
        "prim",
        "Make primary",
        "p",
        Level.CONFIRM,
        "Runs the VM of {module} on {node}.",
        "It uses no half-made copy and moves no VM that runs on {peer}.",
    ),
    _command(
        "second",
        "Make secondary",
        "b",
        Level.CONFIRM,
        "{node} follows {peer}: what differs on {node} is made equal to {peer}.",
        "It does not run the VM on {node}, even if {peer} is not there.",
    ),
    _command(
        "restart",
        "Restart the VM",
        "r",
        Level.CONFIRM,
        "Stops the VM of {module} and starts it again on {node}; the service is interrupted.",
        "It does not move the VM to {peer}.",
    ),
    _command(
        "stopstart",
        "Stop, then start",
        "",
        Level.CONFIRM,
        "Stops {module} on {node}, so that {peer} takes over if it can, then starts it on {node} "
        "again.",
        "It gives up no data.",
    ),
    _command(
        "forcestop",
        "Stop by force",
        "",
        Level.LOSS,
        "Ends {module} on {node} at once: the VM is killed without being shut down, as by a power "
        "cut.",
        "It takes back no write that the guest was told is durable.",
    ),
    _command(
        "primforce",
        "Make primary by force",
        "",
        Level.LOSS,
        "Runs the VM of {module} on {node} whatever its copy is worth; the VM may find damaged "
        "files.",
        "It does not ask {peer}, and brings nothing back that only {peer} has.",
    ),
    _command(
        "verify",
        "Verify the copies",
        "V",
        Level.LIGHT,
        "Compares the copy of {module} on {peer} with the one on {node}, while the VM runs.",
        "It changes neither copy and interrupts nothing.",
    ),
    Action(
        "verify-repair",
        "Verify and repair",
        (),
        Group.COMMAND,
        Level.CONFIRM,
        "verify",
        "Compares both copies of {module} and writes what differs again on {peer}.",
        "It never changes the files on {node}.",
    ),
    _command(
        "verify-stop",
        "Stop verifying",
        "",
        Level.LIGHT,
        "Ends the verification of {module}; what was found so far is its result.",
        "It takes nothing back that was written again on {peer}.",
    ),
)
SETTINGS = (
    _setting(
        "failover-on",
        "Failover on",
        Level.LIGHT,
        "The other node takes {module} over by itself again.",
        "It starts and stops nothing now.",
    ),
    _setting(
        "failover-off",
        "Failover off",
        Level.CONFIRM,
        "When {node} or {peer} fails, nobody takes {module} over until an operator says so.",
        "It starts and stops nothing now.",
    ),
    _setting(
        "boot-on",
        "Boot on",
        Level.LIGHT,
        "{module} starts on {node} together with the daemon.",
        "It starts and stops nothing now.",
    ),
    _setting(
        "boot-off",
        "Boot off",
        Level.LIGHT,
        "{module} stays stopped on {node} when the daemon starts.",
        "It starts and stops nothing now.",
    ),
    _setting(
        "boot-auto",
        "Boot as before",
        Level.LIGHT,
        "{module} is started on {node} if it was started before the daemon ended.",
        "It starts and stops nothing now.",
    ),
    _setting(
        "drain-on",
        "Drain",
        Level.CONFIRM,
        "{module} moves from {node} to {peer} as soon as that has an equal copy, and not back.",
        "If {peer} fails, {node} still takes {module} over.",
    ),
    _setting(
        "drain-off",
        "End of drain",
        Level.LIGHT,
        "{module} may be moved to {node} again.",
        "It moves nothing now.",
    ),
)
CHECKERS = (
    Action(
        "suspend",
        "Suspend checker",
        (),
        Group.CHECKER,
        Level.CONFIRM,
        effect="The checker gives no verdict on either node: a fault that it would find has no "
        "consequence.",
        spares="The failure of a node still leads to a takeover.",
    ),
    Action(
        "resume",
        "Resume checker",
        (),
        Group.CHECKER,
        Level.LIGHT,
        effect="The checker judges again, on both nodes.",
        spares="It starts and stops nothing by itself now.",
    ),
)
SAFETY = (
    Action(
        "safety-restore",
        "Restore safety copy",
        (),
        Group.SAFETY,
        Level.CONFIRM,
        "safety-restore",
        "Makes the state that the safety copy holds anew in another directory on {node}.",
        "It changes nothing in the folder of {module} and keeps the safety copy.",
    ),
    Action(
        "safety-delete",
        "Delete safety copy",
        (),
        Group.SAFETY,
        Level.LOSS,
        "safety-delete",
        "Deletes the safety copy on {node} for good.",
        "It changes nothing in the folder of {module}.",
        loss="the state that this safety copy holds cannot be brought back then",
    ),
)
VIEWS = (
    _view("menu", "Actions", "a", footer=1, effect="Every command, with the reason if not allowed"),
    _view("table", "Tiles or table", "t"),
    _view("next-pane", "Next pane", "tab"),
    _view("tab-log", "Log", "1"),
    _view("tab-scripts", "Scripts", "2"),
    _view("tab-checkers", "Checkers", "3 c"),
    _view("tab-facts", "Facts", "4"),
    _view("plan", "Plan of a resync", "P", effect="What would be moved now, and by which rule"),
    _view("diff", "Differences", "D", effect="What each copy's log says that it changed"),
    _view("safety", "Safety copies", "S", effect="Former states that are kept; restore, delete"),
    _view("whatif", "What if ...", "i", effect="Who would run, and what be lost, if this happened"),
    _view("next", "Next alert or match", "n", effect="The next match while searching, else alert"),
    _view("previous", "Previous match", "N"),
    _view("search", "Search the log", "slash", Group.LOG, footer=5),
    _view("follow", "Follow the log", "f", Group.LOG),
    _view("level", "Level filter", "v", Group.LOG, effect="All lines, warnings, errors"),
    _view("wrap", "Wrap long lines", "W", Group.LOG),
    _view("copy", "Copy the line", "y", Group.LOG, effect="By the terminal's clipboard (OSC 52)"),
    _view("back", "Back", "escape", Group.CONSOLE, effect="Ends a search; never changes anything"),
    _view("lock", "Read-only lock", "L", Group.CONSOLE, effect="RO in line 1: no command leaves"),
    _view("theme", "Next theme", "T", Group.CONSOLE),
    _view("help", "Help", "question_mark f1", Group.CONSOLE, footer=6),
    _view("palette", "Find command", "ctrl+p", Group.CONSOLE, footer=7),
    _view("quit", "Quit", "q ctrl+q", Group.CONSOLE),
)
REGISTRY: tuple[Action, ...] = COMMANDS + SETTINGS + CHECKERS + SAFETY + VIEWS
BY_ID = {action.id: action for action in REGISTRY}
KEY_WORDS = {"slash": "/", "question_mark": "?", "escape": "Esc", "tab": "Tab", "ctrl+p": "^p"}


def key_word(key: str) -> str:
    """A key as people write it."""
    return KEY_WORDS.get(key, key)


def footer_actions() -> list[Action]:
    """The few that the last line names."""
    found = [action for action in REGISTRY if action.footer]
    return sorted(found, key=lambda action: action.footer)[:FOOTER_KEYS_MOST]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the operator looked at when the key was pressed; a dialog keeps its target by this."""

    module: str
    node: str
    peer: str
    side: ModuleNodeView
    peer_side: ModuleNodeView | None

    def sentence(self, template: str) -> str:
        """A sentence of the registry about this target."""
        return template.format(module=self.module, node=self.node, peer=self.peer or "the other")


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an action can be begun, and else why not."""

    allowed: bool
    reason: str = ""


def target_node(model: ConsoleModel, action: Action, module: str, node: str) -> str:
    """The node that carries an action out: swap and verify begin where the VM runs."""
    view = model.module_view(module)
    if action.verb in ("swap", "verify", "verify-stop") and view is not None:
        return next((n for n, side in view.nodes.items() if side.role.runs_vm), node)
    return node


def look(model: ConsoleModel, action: Action, module: str, node: str) -> Seen | None:
    """Capture the target by name; None when there is nothing of that name."""
    node = target_node(model, action, module, node)
    side = model.side(module, node)
    if side is None:
        return None
    peer = model.other_node(node)
    return Seen(module, node, peer, side, model.side(module, peer))


def availability(model: ConsoleModel, action: Action, seen: Seen, now_ms: int) -> Availability:
    """Whether it can be begun now. The node's own reasons are quoted, not copied."""
    if not action.changes:
        return Availability(True)
    if not model.link.live:
        return Availability(False, f"the link is {model.link.state}: nothing can be sent")
    if model.read_only:
        return Availability(False, "the console is read-only: L unlocks it")
    if model.stale(seen.node, now_ms):
        age = age_text(model.node_age_ms(seen.node, now_ms))
        return Availability(False, f"{seen.node} is not heard (last: {age})")
    if action.group is Group.SETTING:
        return _setting_availability(model, action, seen)
    if action.group is Group.CHECKER or action.verb in seen.side.allowed:
        return Availability(True)
    for refused in seen.side.refused:
        if refused.verb == action.verb:
            return Availability(False, refused.reason)
    return Availability(False, f"{seen.node} does not offer {action.verb}")


def _setting_availability(model: ConsoleModel, action: Action, seen: Seen) -> Availability:
    what, _, value = action.verb.partition("-")
    view = model.module_view(seen.module)
    if what == "boot" and seen.side.boot == value:
        return Availability(False, f"boot is {value} already")
    if what == "failover" and view is not None and view.failover is (value == "on"):
        return Availability(False, f"failover is {value} already")
    if action.both_nodes and (seen.peer_side is None or not seen.peer):
        return Availability(False, "the other node is not known")
    return Availability(True)


def loss_of(action: Action, seen: Seen) -> str:
    """What would be lost, in a sentence; empty when nothing is."""
    stated = seen.side.losses.get(action.verb, "")
    if stated or action.loss:
        return stated or action.loss
    if action.verb in ("stop", "forcestop") and seen.side.role.runs_vm and not _peer_ready(seen):
        return f"{seen.peer or 'the other node'} cannot take over: {seen.module} runs nowhere then"
    return ""


def _peer_ready(seen: Seen) -> bool:
    side = seen.peer_side
    return side is not None and side.role is Role.SECOND and side.readiness is Readiness.READY


def level_of(action: Action, seen: Seen) -> Level:
    """The level for this target: a loss makes it the highest."""
    return Level.LOSS if loss_of(action, seen) else action.level


def requests(
    action: Action, seen: Seen, reason: str, copy: str = "", to: str = ""
) -> list[ActionRequest]:
    """What is sent once it was confirmed: the target and what was seen of it. `copy` and `to`: the
    safety copy that it is about, and where it is restored to."""
    confirm = seen.module if seen.side.losses.get(action.verb) else None
    chosen = ActionOptions(confirm=confirm, repair=action.id == "verify-repair", id=copy, to=to)
    sent = [_request(action, seen.node, seen.side, chosen, reason)]
    if action.both_nodes and seen.peer_side is not None:
        sent.append(_request(action, seen.peer, seen.peer_side, ActionOptions(), reason))
    return sent


def _request(
    action: Action, node: str, side: ModuleNodeView, chosen: ActionOptions, reason: str
) -> ActionRequest:
    return ActionRequest.model_validate(
        {
            "verb": action.verb,
            "node": node,
            "request_id": secrets.token_hex(8),
            "expect": Expectation(role=side.role, generation=side.generation),
            "options": chosen,
            "reason": reason,
        }
    )


def checker_change(action: Action, reason: str, until: str | None) -> CheckerChange:
    """What is sent for a checker."""
    return CheckerChange(suspended=action.id == "suspend", reason=reason, until=until)


def changed_since(seen: Seen, side: ModuleNodeView | None) -> str:
    """What is no longer as it was seen; empty when the request still fits."""
    if side is None:
        return f"{seen.module} on {seen.node} is gone"
    if side.role is not seen.side.role:
        return f"{seen.node} is {side.role} now, it was {seen.side.role}"
    if side.generation != seen.side.generation:
        return "the generation of the data has changed"
    return ""


def keys_text(action: Action) -> str:
    """How an action is reached, for people."""
    if action.group is Group.CHECKER:
        return "Space"  # on a checker: bound in the list, since it needs one under the cursor
    if action.group is Group.SAFETY:
        return "S, then " + ("Enter" if action.id == "safety-restore" else "d")
    return " ".join(key_word(key) for key in action.keys) or "menu"


def effect_text(action: Action) -> str:
    """What an action does, with its targets as placeholders."""
    return action.effect.format(module="MODULE", node="NODE", peer="the other node")


def key_sheet() -> str:
    """The table of keys for the documentation, in Markdown."""
    lines = ["# Keys of the console", "", "| key | action | what it does |", "|---|---|---|"]
    for action in REGISTRY:
        lines.append(f"| `{keys_text(action)}` | {action.title} | {effect_text(action)} |")
    return "\n".join(lines) + "\n"
