"""A faster forward and backward pass over rows without padding, for one run or for several at once.

Rows are packed: their tokens are one after the other, and a prefix that all share is computed once (`data.packing`).
Products are then over real tokens only, and attention alone is within each row:

    LoRA    y = x W^T + (x A^T) B^T
    DoRA    y = c (x W^T + (x A^T) B^T),   c = m / |W + B A| row by row

W are the frozen weights of layers that read the same input, such as q, k and v, below each other; A and B are those of
their adapters. `lora_linear` has the equations with dropout, and the gradients.

When which path is used (`padding_free.PaddingFreeModel`):

    trainer.padding_free=true and an architecture of `PADDING_FREE_ARCHITECTURES`,
    or an encoder that `packs`, whose tokens see all of their row                    rows are packed
    - frozen, plain or packed layers of `support.ARCHITECTURES`, with LoRA or
      DoRA at most (`support.supports`); weights not sharded; rows within the
      sliding window                                                               `llama`
    - the same of encoders of `encoder.LAYERS`                                     `encoder`
    - any other                                                                    transformers' layers
      (MPNet's pad the rows again: its attention cannot be replaced)
    else                                                                           padded rows, transformers' layers

The modules, from below: `ops` (norm, rotary embeddings, gated units), `dropout`, `grid_attention` (on the CPU),
`prefix_cache`, `attention`, `lora_linear`, `stacked_lora` (the weights and adapters of a model as W, A and B),
`decoder_layer`, `row_cache` (what frozen weights say about rows), `llama` (all layers), `encoder_layer` and `encoder`
(those of encoders), `support`, `padding_free`. Only a fused sweep goes through `fused_lora_linear`, `fused_forward`,
`run_thread` and `multi_run` (the scheduler); `fusion_context` says whether a thread is one of its runs.
"""
