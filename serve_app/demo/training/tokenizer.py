"""The demo's tokenizer: CLIP's algorithm, with merges learned from the demo's captions.

Every word of the captions is one token; other words split into letters.
"""

import json
import random
import re
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from serve_app.demo.captions import AS_PEOPLE_DO, Language, caption
from serve_app.demo.scene import invent
from serve_app.runtime.networks.quiet import transformers

_CAPTIONS = 8000  # enough for every word of the lexicon to occur many times


def new_tokenizer(folder: Path, seed: int) -> "transformers.CLIPTokenizer":
    """Return CLIP's tokenizer of 77 tokens, with the ids of start and end the two highest.

    It is written to `folder` and read back, so that training uses what will be shipped.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    last_letters = [f"{letter}</w>" for letter in letters]
    learning = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learning.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learning.train_from_iterator(
        _words(seed),
        trainers.BpeTrainer(
            vocab_size=5000,
            initial_alphabet=letters,
            # Otherwise their ids follow the trainer's hash table, which differs between runs, and
            # decide the order of merges with equal counts.
            special_tokens=last_letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges: list[str] = [" ".join(pair) for pair in _merges(learning)]
    tokens = [*letters, *last_letters]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    unique = list(dict.fromkeys(tokens))
    made = transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(unique)},
        merges=[tuple(merge.split(" ")) for merge in merges],
        model_max_length=77,
        pad_token="<|endoftext|>",
    )
    made.save_pretrained(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def _words(seed: int) -> list[str]:
    rng = random.Random(f"{seed} words")
    plain = [
        caption(invent(rng, figures=1 + i % 2, kept_out=False), language, rng, AS_PEOPLE_DO)
        for i in range(_CAPTIONS)
        for language in Language
    ]
    lexicon = {word for text in plain for word in re.findall(r"[^\W\d_]+", text)}
    counts = {word: sum(word in text for text in plain) for word in lexicon}
    # Words inside other words count too, so some pairs of letters become tokens.
    return [word for word in sorted(lexicon) if counts[word] >= 20 for _ in range(20)]


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
