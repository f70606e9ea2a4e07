"""Audits tiny models on splits that two processes cannot share evenly, alone or as one of two; run by test_audit.py.

usage: audit_paired.py OUT.json
"""

import sys

from accelerate import PartialState
from helpers.models import make_images, make_model, make_processor

from ec_hf import ForgetRequest
from ec_hf.auditing.attacks import base, prompt, relearning
from ec_hf.auditing.audit import audit

relearning.STEPS, prompt.STEPS, base.SHOTS = (0, 2), 1, (2,)
state = PartialState(cpu=True)
report = audit(
    make_model("ViT"),
    make_model("ViT", seed=1),
    retrained=make_model("ViT", seed=2),
    train=make_images(26),  # 11 of them are forgotten
    test=make_images(11, seed=1),  # 5
    request=ForgetRequest(classes=["ant", "bee"]),
    processor=make_processor(),
    batch_size=3,
    embedding=False,
    attacks="full",
)
if state.is_main_process:
    report.save(sys.argv[1])
state.wait_for_everyone()
state.destroy_process_group()
