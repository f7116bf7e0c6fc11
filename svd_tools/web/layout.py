"""The page: its tabs, and how it looks."""

from pathlib import Path

import gradio as gr

from svd_tools.web.motion_tab import MotionTab
from svd_tools.web.studio import Studio
from svd_tools.web.text_tab import TextTab
from svd_tools.web.video_tab import VideoTab

STYLE = Path(__file__).with_name("page.css")


def build_page(studio: Studio) -> gr.Blocks:
    """The page, ready to be launched."""
    with gr.Blocks(title="Stable Video Diffusion", analytics_enabled=False) as blocks:
        gr.HTML("<h1>Stable Video Diffusion</h1><p>A picture becomes a short video.</p>", elem_id="title")
        with gr.Tabs(selected="video") as tabs:
            with gr.Tab("Animate", id="video"):
                video = VideoTab(studio, blocks)
            with gr.Tab("Text to picture", id="text"):
                TextTab(studio, blocks, video, tabs)
            with gr.Tab("Motion", id="motion"):
                MotionTab(studio, video.panel["motion_bucket_id", None])
    return blocks


def make_theme() -> gr.themes.Base:
    """Gradio's plain theme with the system's fonts, and grey text dark enough to be read (WCAG AA)."""
    theme = gr.themes.Base(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        block_title_text_color="*neutral_800",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
