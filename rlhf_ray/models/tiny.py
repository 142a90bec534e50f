"""Models small enough for tests: a Llama that chats and a BERT, with random weights from a seed, no files needed."""

from __future__ import annotations

from pathlib import Path

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The byte pairs are learned from this text: frequent English words, so that test sentences stay short in tokens.
CORPUS = (
    "user assistant system the of and to in a is that it for you was with on as have but be they are not this from or "
    "one had by word what all were we when your can said there use an each which she do how their if will up other "
    "about out many then them these so some her would make like him into time has look two more write go see number no "
    "way could people my than first water been call who oil its now find long down day did get come made may part good "
    "great answer question please help thank sorry cannot yes because where why here hello tell me explain short list "
    "name city capital country colour red green blue sun moon tree house cat dog book story year old new best worst "
    "number one two three four five six seven eight nine ten plus minus times equals true false happy sad bad nice"
)


def tiny_model(folder: Path, seed: int = 0, vocab_size: int = 512) -> Path:
    """Creates a chat model of 0.4 M parameters in `folder` and returns `folder`.

    Two Llama layers of width 128 (4 heads of 32, 2 key-value heads), byte-level BPE of at most `vocab_size` tokens, a
    ChatML template, `<|im_end|>` as end of sequence and `<|endoftext|>` as padding. The same seed gives the same files.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pad, start, end = SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers is partly untyped
        tokenizer_object=_tokenizer(vocab_size), bos_token=start, eos_token=end, pad_token=pad, model_max_length=1024
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),  # not more: an id without a token could be sampled and not decoded
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dtype="float32",
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]  # as above
    model.generation_config = GenerationConfig(**ids)  # type: ignore[no-untyped-call]  # as above
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_encoder(folder: Path, seed: int = 0, vocab_size: int = 512) -> Path:
    """Creates an encoder of 0.4 M parameters in `folder` and returns `folder`.

    Two BERT layers of width 128 (4 heads), 512 positions, the byte pairs of `tiny_model`, and BERT's control tokens
    around one text or two. The same seed gives the same files.
    """
    import torch
    from tokenizers import processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pad, unknown, begin, separator, mask = BERT_TOKENS
    backend = _tokenizer(vocab_size, BERT_TOKENS)
    ids = [(token, backend.token_to_id(token)) for token in (begin, separator)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {separator}", pair=f"{begin} $A {separator} $B:1 {separator}:1", special_tokens=ids
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers is partly untyped
        tokenizer_object=backend, pad_token=pad, unk_token=unknown, cls_token=begin, sep_token=separator,
        mask_token=mask, model_max_length=512,
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]  # as above
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(vocab_size: int, special_tokens: tuple[str, ...] = SPECIAL_TOKENS):  # type: ignore[no-untyped-def]  # tokenizers ships no types
    """A byte-level BPE tokenizer: all 256 bytes, the special tokens, and merges learned from `CORPUS`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer
