"""Tokenizers trained on the spot, with chat templates in the manner of well-known families, as the files of a checkpoint."""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "You are a helpful assistant. What is the weather in Paris? It is sunny, 21 degrees.",
    'function name arguments {"type": "object", "properties": {"city": {"type": "string"}}}',
    "Größe, naïve café, 東京の天気, emoji 🙂 and <b>HTML</b> & 'quotes'.\n\n  indented\tlines",
]

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}
        {%- continue %}
    {%- endif %}
    {%- if message.role in ('user', 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- set month = strftime_now('%b %Y') if strftime_now is defined else '26 Jul' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today: ' + month + '\\n\\n' }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.content %}{% set ns = namespace(text=message.content) %}{{- ns.text }}{% endif %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- for tool_call in message.tool_calls %}
            {{- '{"name": "' + tool_call.function.name + '", "parameters": ' }}
            {{- tool_call.function.arguments | tojson(sort_keys=True) }}
            {{- '}' }}
        {%- endfor %}
        {{- '<|eot_id|>' }}
    {%- elif message.role == 'tool' or message.role == 'ipython' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- set ns = namespace(system='', users=0) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = ns.system + message.content + '\\n\\n' %}
    {%- elif message.role == 'user' %}
        {%- set ns.users = ns.users + 1 %}
        {%- if tools and loop.last %}
            {{- '[AVAILABLE_TOOLS] ' }}{{ tools | map(attribute='function') | list | tojson }}{{ '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + ns.system + message.content + '[/INST]' }}
        {%- set ns.system = '' %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length < 3 %}
                {{- raise_exception('Tool call ids must have 3 characters at least: ' + call.id) }}
            {%- endif %}
            {{- dict(call.function, id=call.id) | tojson }}{{ ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id }}
        {{- '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""


def _special(*contents: str, **flags: bool) -> list[AddedToken]:
    return [AddedToken(content, special=True, normalized=False, **flags) for content in contents]


def _train(tokenizer: Tokenizer, added: list[AddedToken], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(added)
    return tokenizer


def _files(tokenizer: Tokenizer, template: str | list[dict[str, str]], **config: object) -> dict[str, bytes]:
    """A template given as text is a file of its own; several are in the configuration, as checkpoints have them."""
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    else:
        settings["chat_template"] = template
    return {**files, "tokenizer_config.json": json.dumps(settings).encode()}


def _byte_level(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def chatml() -> dict[str, bytes]:
    """Qwen's manner: byte-level BPE over NFC, tool marks that are tokens but not special ones."""
    tokenizer = _byte_level(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.normalizer = normalizers.NFC()
    marks = [AddedToken(mark, normalized=False) for mark in ("<tool_call>", "</tool_call>", "<tool_response>")]
    added = [*_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"), *marks]
    _train(tokenizer, added, pre_tokenizers.ByteLevel.alphabet())
    return _files(tokenizer, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None)


def llama3() -> dict[str, bytes]:
    """Byte-level BPE that begins with a token of its own, which the template writes too, and no default for tools."""
    tokenizer = _byte_level(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    added = _special("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    _train(tokenizer, added, pre_tokenizers.ByteLevel.alphabet())
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin) or 0)]
    )
    without_tools = LLAMA3.replace("{%- if tools is not none %}", "{%- if false %}")
    templates = [{"name": "default", "template": without_tools}, {"name": "tool_use", "template": LLAMA3}]
    return _files(tokenizer, templates, bos_token={"__type": "AddedToken", "content": begin}, eos_token="<|eot_id|>")


def mistral() -> dict[str, bytes]:
    """SentencePiece's manner: blanks are marks, the first word has one in front, unknown characters one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    marks = (
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_CALLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    )
    _train(tokenizer, _special("<s>", "</s>", *marks), [])
    return _files(tokenizer, MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def awkward() -> dict[str, bytes]:
    """Added tokens that look beside them, contain each other, overlap, or match only after normalization."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend("_")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    added = [
        *_special("<s>", "</s>", "[a]", "[a]b", "<s", "x<|y|>", "aba"),
        *_special("<left>", "x<u", lstrip=True),
        *_special("<right>", rstrip=True),
        *_special("<word>", single_word=True),
        AddedToken("<NORM>", normalized=True),
    ]
    _train(tokenizer, added, list("abcdefghijklmnopqrstuvwxyz<>[]|_"))
    return _files(tokenizer, CHATML, bos_token="<s>", eos_token="</s>", pad_token="<missing_pad>")


BUILDERS = {"chatml": chatml, "llama3": llama3, "mistral": mistral, "awkward": awkward}


@cache
def files_of(name: str) -> dict[str, bytes]:
    return BUILDERS[name]()
