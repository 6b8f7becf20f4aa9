"""What conversations share at their beginning is read once, and nobody's answer changes for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_served import asked, scene

from agevlm.serve.decoding import Decoder, Pictured, Rows
from agevlm.serve.prefixes import ENTRY_BYTES, Prefixes, least_tokens
from agevlm.vlms import Vlm

IMAGE = 99


def states_of(ids: list[int]) -> Any:
    """States that tell their tokens: 2 layers, one head of width 1."""
    row = torch.tensor(ids, dtype=torch.float32)[None, None, None, :, None].expand(2, 2, 1, -1, 1)
    return lambda start, end: row[..., start:end, :]


def found(prefixes: Prefixes, ids: list[int], pictures: list[str] = []) -> list[int]:  # noqa: B006
    states = prefixes.find(ids, pictures)
    return [] if states is None else states[0, 0, 0, :, 0].int().tolist()


def test_what_is_common_at_the_beginning_is_found_to_the_token() -> None:
    prefixes, ids = Prefixes(100_000, IMAGE), list(range(20))
    assert found(prefixes, ids) == []
    prefixes.keep(ids, [], states_of(ids))
    assert found(prefixes, [*ids, 30, 31, 32, 33]) == ids
    assert found(prefixes, ids) == ids[:-1], "the last token is left to be read"
    assert found(prefixes, [*ids[:12], 50, *ids[13:]]) == ids[:12]
    assert found(prefixes, [7, *ids[1:]]) == []
    longer = [*ids[:12], *range(40, 60)]
    prefixes.keep(longer, [], states_of(longer))
    assert found(prefixes, longer) == longer[:-1]
    assert found(prefixes, [*ids, 30]) == ids, "both ends of what they share are kept"


def test_numbers_that_read_alike_side_by_side_are_other_tokens() -> None:
    prefixes = Prefixes(100_000, IMAGE)
    prefixes.keep([1, 23, 4], [], states_of([1, 23, 4]))
    assert found(prefixes, [12, 3, 4, 5]) == []
    assert found(prefixes, [1, 2, 34, 5]) == [1]


def test_what_stands_behind_another_picture_is_something_else() -> None:
    prefixes, ids = Prefixes(100_000, IMAGE), [*range(10), IMAGE, *range(20, 40)]
    prefixes.keep(ids, ["a fish"], states_of(ids))
    assert found(prefixes, ids, ["a fish"]) == ids[:-1]
    assert found(prefixes, ids, ["a boat"]) == ids[:10]


def test_it_is_bounded_and_the_ends_go_first() -> None:
    token = 2 * 2 * 4 + ENTRY_BYTES
    prefixes, ids = Prefixes(24 * token, IMAGE), list(range(48))
    prefixes.keep(ids, [], states_of(ids))
    assert prefixes.num_bytes == 24 * token
    assert found(prefixes, ids) == ids[:24]
    other = list(range(100, 116))
    prefixes.keep(other, [], states_of(other))
    assert found(prefixes, ids) == ids[:8]
    assert prefixes.num_bytes == 24 * token


def test_what_is_kept_holds_no_more_memory_than_is_counted() -> None:
    """A view of the states of a whole conversation would keep all of it alive for one of its tokens."""
    prefixes, ids = Prefixes(100_000, IMAGE), list(range(20))
    prefixes.keep(ids, [], states_of(ids))
    held = [token.untyped_storage() for token in prefixes._tokens._values.values()]
    assert sum(storage.nbytes() + ENTRY_BYTES for storage in held) == prefixes.num_bytes


def test_beginnings_that_are_read_as_fast_are_not_kept() -> None:
    prefixes, ids = Prefixes(100_000, IMAGE, least=12), list(range(20))
    prefixes.keep(ids[:11], [], states_of(ids))
    assert prefixes.num_bytes == 0
    prefixes.keep(ids, [], states_of(ids))
    assert found(prefixes, [*ids[:12], 50]) == ids[:12]
    assert found(prefixes, [*ids[:11], 50, 51, 52]) == []
    assert found(prefixes, ids[:12]) == []


def test_a_large_model_keeps_every_token() -> None:
    with torch.device("meta"):
        assert least_tokens(torch.nn.Linear(10_000, 10_000)) == 1
        assert least_tokens(torch.nn.Linear(1000, 1000, bias=False)) == 50


def read_alone(vlm: Vlm, questions: list[str], numbers: list[list[int]]) -> tuple[list[list[int]], list[list[Any]]]:
    prompts = [vlm.prompt(question, len(pictures)) for question, pictures in zip(questions, numbers, strict=True)]
    ids = [vlm.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    return ids, [[vlm.keep([scene(number)])[0].memory for number in pictures] for pictures in numbers]


@torch.inference_mode()
def test_rows_with_a_beginning_are_the_rows_read_whole(tiny: tuple[str, Any, Any]) -> None:
    """Beginnings of different length, none, and one before a second picture; in one batch, and on from there."""
    vlm = Vlm(*tiny[1:])
    questions = [
        "is there a fish?",
        "what is in the picture?",
        "is there a red cup on the left side of a boat?",
        "why?",
    ]
    prompts, memories = read_alone(vlm, questions, [[0], [1, 2], [0], []])
    decoder = Decoder(tiny[1], tiny[2].tokenizer.pad_token_id)
    whole, logits = decoder.read(prompts, memories)
    cuts = [3, prompts[1].index(vlm.image_token_id) + 1, len(prompts[2]) - 1, 0]
    prefixes = [whole.states(row, 0, cut) if cut else None for row, cut in enumerate(cuts)]
    rest, logits_rest = decoder.read(prompts, memories, prefixes)
    torch.testing.assert_close(logits_rest, logits, rtol=1e-4, atol=1e-4)

    def on(rows: Rows, logits: Any) -> list[Any]:
        steps = []
        for _ in range(4):
            tokens = logits.argmax(-1).tolist()
            rows, logits = decoder.step(rows.select(range(len(rows))), tokens)
            steps.append(logits)
        return steps

    for one, other in zip(on(rest, logits_rest), on(whole, logits), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pictures", [[[0], [1]], [[0], []], [[0, 1], [1]]])
def test_what_tells_of_pictures_is_where_they_are(tiny: tuple[str, Any, Any], pictures: list[list[int]]) -> None:
    """On another device than the processor's memory, for which the meta device stands."""
    memories = [kept.to("meta") for kept in read_alone(Vlm(*tiny[1:]), ["why?"] * 2, [[0], [1]])[1][0] * 2]
    pictured = Pictured(tuple([memories[number] for number in row] for row in pictures))
    told = {**pictured.arguments, **pictured.seen_by_next(torch.device("meta"))}
    assert {name: value.device.type for name, value in told.items() if hasattr(value, "device")} == {
        name: "meta" for name in told if name != "rows_per_image"
    }


def test_a_conversation_that_goes_on_reads_its_new_turn_alone(
    client: Any, served: tuple[str, list[Any]], tiny: tuple[str, Any, Any]
) -> None:
    messages: list[dict[str, Any]] = asked(scene(11), "what is in the picture?")
    kept = []
    for question in ("is there a fish?", "is there a tree in the picture?", "how many cars are there?"):
        first = client.chat.completions.create(model="tiny", messages=messages)
        again = client.chat.completions.create(model="tiny", messages=messages)
        assert again.choices[0].message.content == first.choices[0].message.content
        usage = again.usage
        read = usage.prompt_tokens - 1
        assert usage.prompt_tokens_details.cached_tokens == (read if read >= least_tokens(tiny[1]) else 0)
        kept.append(first.usage.prompt_tokens_details.cached_tokens)
        messages += [
            {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": question},
        ]
    assert 0 == kept[0] <= kept[1] < kept[2]
    assert served[1][0].prefixes.num_bytes > 0


def test_another_picture_behind_the_same_words_is_looked_at(client: Any, tiny: tuple[str, Any, Any]) -> None:
    import agevlm

    for number in (21, 22, 21, 23):
        said = client.chat.completions.create(model="tiny", messages=asked(scene(number), "what is in the picture?"))
        assert said.choices[0].message.content == agevlm.look(tiny[1:], scene(number), "what is in the picture?").answer


@pytest.mark.parametrize("cached", ["true", "false"])
def test_metrics_count_it(client: Any, served: tuple[str, list[Any]], cached: str) -> None:
    import urllib.request

    said = [{"role": "assistant", "content": "a red fish, a tree, a boat, two cars and a cup with a blue book on it."}]
    messages = [*asked(scene(31), "what is in the picture?"), *said, {"role": "user", "content": "is there a dog?"}]
    for _ in range(2):
        client.chat.completions.create(model="tiny", messages=messages)
    text = urllib.request.urlopen(f"{served[0]}/metrics").read().decode()
    line = next(line for line in text.splitlines() if f'prompt_tokens_total{{cached="{cached}"' in line)
    assert float(line.split()[-1]) > 0
