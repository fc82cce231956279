"""Networks: a backbone that makes features, and one head whose use the scenario decides. Begin with ``continual``.

``continual``      backbone and head as one network; ``answers`` what it is asked, ``heads`` its last layer
``stages``         what a backbone is made of, in order: for freezing and for computing a prefix once
``hidden_layers``  its hidden units, for resets and measures of plasticity
``initialisation`` initial weights of linear layers by their names in published codes
``weights``        weights from a file; ``half_precision`` frozen ones in bf16

Backbones are registered classes, a file each: see ``mlp``, then ``cnn``, ``resnet18``, ``resnet32``, ``small_vit``,
``timm_backbone``, ``text_encoder`` and ``causal_lm``. What methods put into a network or beside it: ``lora``, ``prompts``,
``prompt_pools``, ``singular_parts``, ``expandable``, ``hypernetworks``, ``vae``.
"""
