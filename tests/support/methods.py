"""The methods of PEFT with keys that fit tiny models, as overrides."""

from sentexp.config.peft_methods import METHODS

PRESETS = sorted(set(METHODS) - {"other"})
SMALL = {
    "c3a": ["peft.init_weights=true"],
    "p_tuning": ["peft.num_virtual_tokens=3", "peft.encoder_hidden_size=8"],
    "prefix_tuning": ["peft.num_virtual_tokens=3"],
    "prompt_tuning": ["peft.num_virtual_tokens=3"],
    "fourierft": ["peft.n_frequency=50"],
    "gralora": ["peft.r=4"],
    "hira": ["peft.r=4"],
    "miss": ["peft.r=4"],
    "oft": ["peft.oft_block_size=8"],
    "randlora": ["peft.r=4", "peft.randlora_alpha=16"],
    "road": ["peft.group_size=8"],
    "shira": ["peft.r=2"],
    "vblora": ["peft.num_vectors=8"],
    "vera": ["peft.r=8"],
    "waveft": ["peft.n_frequency=50"],
}
"""Keys that fit the tiny model."""
OTHERS = ["peft.type=BEFT"], ["peft.type=DEFT"], ["peft.type=PSOFT", "peft.config.r=8"], ["peft.type=LILY"]
WORDS = {name: [f"peft={name}", *SMALL.get(name, [])] for name in PRESETS}
WORDS |= {words[0].partition("=")[2].lower(): ["peft=other", *words] for words in OTHERS} | {"bitfit": ["peft=bitfit"]}
STARTS = ("gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora", "eva", "corda", "lora_ga")
LORA = {start: [f"peft.init={start}", "peft.r=4"] for start in STARTS}
"""Ways in which LoRA begins."""
PATTERNS = [
    "peft.r=4",
    "peft.rank_pattern={v_proj:2,layers.1.mlp.up_proj:6}",
    "peft.alpha_pattern={v_proj:16}",
    "peft.exclude_modules=[layers.0.self_attn.q_proj]",
]
LORA |= {"patterns": PATTERNS, "beside": [*PATTERNS, "peft.modules_to_save=[norm]"]}
"""LoRA whose layers differ, and which trains a norm beside."""


def plus(words):
    """Return overrides as the command line hands them to hydra."""
    return [f"++{word}" if word.startswith("peft.config.") else word for word in words]
