"""The conversation format of `sgqlm.text` as a Jinja template of a Hugging Face folder."""

import json

from sgqlm import config
from sgqlm.text import templates

# Message content is a text or a list of parts. As in `templates.image_first`, a message with an
# image has it in front on a line of its own, and its text loses the spaces around it.
_HEAD = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{- content -}}{%- else -%}
{%- for part in content if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro with_image(content) -%}
{%- set text = text_of(content) -%}
{%- set images = 0 if content is string else
    content | selectattr('type', 'in', ['image', 'image_url']) | list | length -%}
{%- if images or '<image>' in text -%}
{{- ('<image>\\n' * ([images, 1] | max) ~ text.replace('<image>', '') | trim) | trim -}}
{%- else -%}{{- text -}}{%- endif -%}
{%- endmacro -%}
"""
_PLAIN = """\
{%- for message in messages -%}
{%- set text = with_image(message['content']) -%}
{{- text if text == '<image>' else text ~ '\\n' -}}
{%- endfor -%}
"""
_CHAT = """\
{%- set asking = open_role is defined and open_role == 'vuser' -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = text_of(messages[0]['content']) -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = SYSTEM -%}
{%- set turns = messages -%}
{%- endif -%}
OPENING
{{- system ~ ' ' if system else '' -}}
{%- for message in turns -%}
{%- set text = with_image(message['content']) -%}
{%- if message['role'] == 'assistant' -%}
{{- 'ASSISTANT: ' ~ text ~ '</s>' -}}
{%- elif message['role'] == 'user' and asking and loop.last and text == '<image>' -%}
{{- 'USER: <image>\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- 'USER: ' ~ text ~ ' ' -}}
ASKED
{%- else -%}
{{- raise_exception('roles are ROLES') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- OPEN_ROLE -}}{%- endif -%}
"""
_ASKED = """\
{%- elif message['role'] == 'vuser' -%}
{%- if text.startswith('<image>\\n') -%}
{{- 'USER: <image>\\n' -}}
{%- set text = text[8:] -%}
{%- endif -%}
{{- 'VUSER: ' ~ text ~ '</s> ' -}}
"""
_OPENING = """\
{%- if turns and turns[0]['role'] == 'assistant' -%}
{%- set turns = turns[1:] -%}
{%- endif -%}
"""


def build(text: config.TextConfig) -> str:
    """Return the template that renders what `conversation.prompt` renders.

    Roles are `system` (replaces the system text), `user` and `assistant`; the format `v1_sq` has
    `vuser` as well, for questions that the model asked, and takes `open_role="vuser"` to let it
    ask the next one (about an image alone: after a user message that is nothing but the image).

    Args:
        text: the conversation format, with its system text and the marker of asked questions.

    Returns:
        The content of chat_template.jinja.
    """
    form = templates.get(text.template)
    if form.name == "plain":
        return _HEAD + _PLAIN
    system = form.system if text.system is None else text.system
    vuser = templates.VUSR_TOKEN if text.vusr_marker == "token" else templates.VUSER
    answer = f"'{templates.ASSISTANT}:'"
    chat = _CHAT.replace("OPENING\n", _OPENING if form.drops_opening else "")
    chat = chat.replace("ASKED\n", _ASKED.replace("'VUSER:", f"'{vuser}:") if form.can_ask else "")
    chat = chat.replace(
        "OPEN_ROLE", f"'{vuser}:' if asking else {answer}" if form.can_ask else answer
    )
    chat = chat.replace("ROLES", "system, user, assistant" + ", vuser" * form.can_ask)
    # a string of json is one of Jinja too, as long as letters beyond ASCII stay as they are
    return _HEAD + chat.replace("SYSTEM", json.dumps(system, ensure_ascii=False))
