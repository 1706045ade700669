"""Conversations to token ids: templates, and renderings that know which tokens the assistant wrote."""

from posttrain.chat.render import (
    answer_text,
    follow_up,
    prompt,
    render,
    render_answer,
    render_pair,
    render_text,
    stop_ids,
)
from posttrain.chat.show import paint
from posttrain.chat.steps import Steps, label_steps, render_steps
from posttrain.chat.templates import CHATML, PLAIN, POSTTRAIN, TEMPLATES, JinjaTemplate, Template, Turn, choose

__all__ = [
    "CHATML",
    "PLAIN",
    "POSTTRAIN",
    "TEMPLATES",
    "JinjaTemplate",
    "Steps",
    "Template",
    "Turn",
    "answer_text",
    "choose",
    "follow_up",
    "label_steps",
    "paint",
    "prompt",
    "render",
    "render_answer",
    "render_pair",
    "render_steps",
    "render_text",
    "stop_ids",
]
