"""The words for actions: texts for generated clips, and which action a text asks for when."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mfk.core.types import describe
from mfk.data.stick import ACTIONS

_SAID = {
    "idle": "stand still,stands still,standing still,wait,waits,waiting,idle,idles,idling",
    "walk": "walk,walks,walking,stroll,strolls,strolling",
    "run": "run,runs,running,jog,jogs,jogging",
    "sprint": "sprint,sprints,sprinting,dash,dashes,dashing",
    "jump": "jump,jumps,jumping,leap,leaps,leaping",
    "wave": "wave,waves,waving,wave hello,waves hello,waving hello",
    "talk": "talk,talks,talking,speak,speaks,speaking",
    "shout": "shout,shouts,shouting",
    "whisper": "whisper,whispers,whispering",
    "sing": "sing,sings,singing",
    "point": "point,points,pointing,point ahead,points ahead,pointing ahead",
    "clap": "clap,claps,clapping,applaud,applauds,applauding",
    "batting": "bat,bats,batting",
    "pitching": "pitch,pitches,pitching",
    "catching": "catch,catches,catching",
    "running_bases": "run the bases,runs the bases,running the bases,run bases,runs bases,running bases",
    "fielding": "field,fields,fielding",
    "throwing": "throw,throws,throwing,throw a ball,throws a ball,throwing a ball",
    "kicking": "kick a ball,kicks a ball,kicking a ball,kick a soccer ball,kicks a soccer ball,"
    "kicking a soccer ball",
    "dribbling": "dribble,dribbles,dribbling",
    "shooting": "shoot,shoots,shooting",
    "fight": "fight,fights,fighting,brawl,brawls,brawling",
    "punch": "punch,punches,punching,box,boxes,boxing",
    "kick": "kick,kicks,kicking",
    "dodge": "dodge,dodges,dodging,sway from side to side,sways from side to side,swaying from side to side",
    "sit": "sit,sits,sitting,sit down,sits down,sitting down",
    "stand": "stand,stands,standing,stand up,stands up,standing up",
    "kneel": "kneel,kneels,kneeling",
    "lie_down": "lie down,lies down,lying down,lie,lies,lying",
    "eating": "eat,eats,eating",
    "drinking": "drink,drinks,drinking",
    "reading": "read,reads,reading",
    "typing": "type,types,typing,sit and type,sits and types,sitting and typing",
    "looking_around": "look around,looks around,looking around",
    "climbing": "climb,climbs,climbing",
    "crawling": "crawl,crawls,crawling",
    "swimming": "swim,swims,swimming",
    "flying": "fly,flies,flying",
    "celebrate": "celebrate,celebrates,celebrating,cheer,cheers,cheering",
    "dance": "dance,dances,dancing",
    "cry": "cry,cries,crying",
    "laugh": "laugh,laughs,laughing",
    "handshake": "shake hands,shakes hands,shaking hands",
    "hug": "hug,hugs,hugging",
    "high_five": "high five,high fives,high fiving,high-five,high-fives,high-fiving",
    "fight_stance": "take a fighting stance,takes a fighting stance,taking a fighting stance",
    "bend": "bend,bends,bending,bend over,bends over,bending over",
    "block": "block,blocks,blocking",
    "dab": "dab,dabs,dabbing,do a dab,does a dab,doing a dab",
    "dance_indian": "dance an indian dance,dances an indian dance,dancing an indian dance",
    "dance_salsa": "dance salsa,dances salsa,dancing salsa",
    "elbow_strike": "strike with the elbow,strikes with the elbow,striking with the elbow",
    "hop": "hop,hops,hopping",
    "jumping_jacks": "do jumping jacks,does jumping jacks,doing jumping jacks,perform jumping jacks,"
    "performs jumping jacks,performing jumping jacks",
    "kata": "perform a kata,performs a kata,performing a kata",
    "swing": "swing,swings,swinging",
    "swordplay": "fight with a sword,fights with a sword,fighting with a sword",
    "walk_uneven": "walk on uneven terrain,walks on uneven terrain,walking on uneven terrain",
    "wash": "wash,washes,washing",
    "zombie_walk": "walk like a zombie,walks like a zombie,walking like a zombie",
}

ACTION_WORDS: Mapping[str, tuple[str, ...]] = {action: tuple(_SAID[action].split(",")) for action in ACTIONS}
"""Action -> base form, third person and -ing form, of one phrase or of several that mean the same."""

_ALL = sorted(
    ((phrase, action) for action, phrases in ACTION_WORDS.items() for phrase in phrases),
    key=lambda pair: -len(pair[0]),
)
_CUT = re.compile(r"\s*(?:[,;.]\s*)?\b(?:and\s+then|then)\b\s*,?\s*|\s*[,;.]\s*(?:and\s+)?", re.IGNORECASE)


def action_schedule(text: str, frames: int) -> list[tuple[int | None, int]]:
    """Which action a text asks for from which frame on: one for each of its clauses, over equal times.

    Clauses are cut at "then", "and then", commas, semicolons and full stops. A clause's action is that of
    the words found first in it, of longer ones where several begin there: "kicks a ball" is no kick.

    Args:
        text: such as "a person walks, then jumps and then waves".
        frames: to spread over, at least as many as there are clauses.

    Returns:
        (place in ACTIONS, or None of a clause without words of an action; first frame) for each clause.

    Raises:
        ValueError: a text without words, or too few frames. TypeError: no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"text: expected a text, got {describe(text)}")
    clauses = [clause for clause in _CUT.split(text) if re.search(r"\w", clause)]
    if not clauses:
        raise ValueError(f"text: expected words, got {text!r:.80}")
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames: expected an int >= 1, got {describe(frames)}")
    if frames < len(clauses):
        raise ValueError(
            f"text: expected at most a clause for each of {frames} frames, got {len(clauses)} clauses"
        )
    return [(_action(clause), place * frames // len(clauses)) for place, clause in enumerate(clauses)]


def _action(clause: str) -> int | None:
    said = " ".join(clause.lower().split())
    found: tuple[int, str] | None = None
    for phrase, action in _ALL:  # longer ones first
        match = re.search(rf"\b{re.escape(phrase)}\b", said)
        if match and (found is None or match.start() < found[0]):
            found = match.start(), action
    return None if found is None else ACTIONS.index(found[1])
