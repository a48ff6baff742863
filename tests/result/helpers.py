"""A result with hostile text wherever there can be any."""

import json

from defensekit.result.schema import Result

EVIL = (
    "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> & \"quoted\" [a](b) | `c`"
)


def poisoned(result: Result) -> Result:
    """The result as an attacker would write it: markup wherever text from outside may stand."""
    data = json.loads(result.model_dump_json())
    data["data"]["labels"][1] = EVIL
    for example in data["examples"]:
        example.update(text=EVIL + " cf", plain=EVIL, label=EVIL, pair=EVIL, answers={"suspect": EVIL, "purified": "x"})
    data["warnings"] = [EVIL]
    data["chosen"]["reason"] = EVIL
    data["recipe"]["attack"]["name"] = EVIL
    data["recipe"]["defense"]["scorer"]["name"] = EVIL
    data["models"][EVIL] = data["models"]["random"]
    data["models"]["purified"]["reset"]["tensors"] |= {f"layer.0.{EVIL}": [4, 4, 2], EVIL: [4, 0, 0]}
    data["stages"][0]["title"] = EVIL
    data["environment"]["platform"] = EVIL
    data["folder"] = EVIL
    return Result.model_validate(data)
