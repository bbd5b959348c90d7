"""What pytorch-ssd does otherwise than torchvision's SSD: the protocol of the SB paper's Table 4.

The project is github.com/qfgaohao/pytorch-ssd, with ``mb2-ssd-lite``. What both do alike, such as the overlap of 0.5
from which a box trains, three negatives for a positive, variances of 0.1 and 0.2, and suppression from an overlap of
0.45 among boxes with a score above 0.01, is torchvision's code. So are the names of all weights.

**Not followed** are details that should hardly matter; nobody has measured it. pytorch-ssd adds 1e-5 to every union of
two boxes, in units of the image's area. So where boxes overlap an object equally, rounding decides which one trains,
there and here. It rounds the pixels of a resized image to bytes in evaluation, though not in training. Its annotated
boxes end one pixel earlier, at the beginning of the last pixel inside, in training and evaluation. It does not limit
how much larger than its default box a box may be; here it is 62 times at most.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import nms

Init = Literal["xavier", "default"]

OVERLAP = 0.5  # with an object, from which a default box trains to find it
NEGATIVES = 3  # for each positive box of an image
CANDIDATES = 200  # of each class, before suppression

SETTINGS: dict[str, Any] = {  # arguments of torchvision's SSD
    "iou_thresh": OVERLAP,
    "score_thresh": 0.01,
    "nms_thresh": 0.45,
    "topk_candidates": CANDIDATES,
    "detections_per_img": sys.maxsize,
}


class BestBoxes(Matcher):
    """Gives each default box the object that it overlaps most, if by one half; and each object its best box.

    If a box is the best of several objects, the last one gets it. torchvision leaves that open.
    """

    def __init__(self) -> None:
        super().__init__(OVERLAP, OVERLAP, allow_low_quality_matches=False)

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """From overlaps (objects, boxes), the object of each box (boxes,); -1 for background."""
        matches = super().__call__(match_quality_matrix)
        objects = torch.arange(len(match_quality_matrix), device=matches.device)
        last = torch.full_like(matches, -1).scatter_reduce(0, match_quality_matrix.argmax(1), objects, "amax")
        return torch.where(last >= 0, last, matches)


class Rules:
    """A mixin for torchvision's SSD: pytorch-ssd's assignment, losses and detections."""

    box_coder: Any
    proposal_matcher: Matcher
    score_thresh: float
    nms_thresh: float
    topk_candidates: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, **SETTINGS)
        self.proposal_matcher = BestBoxes()

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """The losses of boxes and classes: sums over the batch, divided by the number of its positive boxes.

        The negatives of an image are the boxes with the largest loss as background, three for each positive. A
        positive box counts once, also if the image has fewer negatives than that; torchvision would count it twice.
        """
        matches = torch.stack(matched_idxs)
        positive = matches >= 0
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        labels = torch.zeros_like(matches)
        aims = []
        for image, target in enumerate(targets):
            where = positive[image]
            objects = matches[image][where]
            labels[image][where] = target["labels"][objects]
            aims.append(self.box_coder.encode_single(target["boxes"][objects], anchors[image][where]))
        sampled = positive | self._negatives(logits.detach(), positive)
        count = positive.sum().clamp(min=1)
        boxes = F.smooth_l1_loss(deltas[positive], torch.cat(aims), reduction="sum")
        kinds = F.cross_entropy(logits[sampled], labels[sampled], reduction="sum")
        return {"bbox_regression": boxes / count, "classification": kinds / count}

    @staticmethod
    def _negatives(logits: Tensor, positive: Tensor) -> Tensor:
        """The boxes that train as background, bool (N, boxes)."""
        losses = -F.log_softmax(logits, -1)[..., 0]
        ranks = losses.masked_fill(positive, -torch.inf).argsort(1, descending=True).argsort(1)
        return ranks < NEGATIVES * positive.sum(1, keepdim=True)

    def postprocess_detections(
        self, head_outputs: dict[str, Tensor], image_anchors: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """The detections of each image, the best first: any number of boxes, which may exceed the image."""
        scores = F.softmax(head_outputs["cls_logits"], -1)
        each = zip(head_outputs["bbox_regression"], scores, image_anchors, strict=True)
        return [self._detected(self.box_coder.decode_single(deltas, anchors), image) for deltas, image, anchors in each]

    def _detected(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """The detections among boxes (n, 4) with scores (n, classes)."""
        found = []
        for label in range(1, scores.shape[1]):  # one class after the other: suppression is within a class
            candidates = (scores[:, label] > self.score_thresh).nonzero()[:, 0]
            order = scores[candidates, label].argsort(descending=True)[: self.topk_candidates]
            candidates = candidates[order]
            candidates = candidates[nms(boxes[candidates], scores[candidates, label], self.nms_thresh)]
            kinds = torch.full_like(candidates, label)
            found.append((boxes[candidates], scores[candidates, label], kinds))
        all_boxes, all_scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
        order = all_scores.argsort(descending=True)
        return {"boxes": all_boxes[order], "scores": all_scores[order], "labels": labels[order]}


def give_biases(head: SSDLiteHead) -> None:
    """Give pytorch-ssd's biases to the depthwise convolutions of a head, in front of their batch norms."""
    for part in (head.classification_head, head.regression_head):
        for block in part.module_list[:-1]:  # the last one is a single convolution
            wide = block[0][0].in_channels
            block[0][0] = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)


def initialised(module: nn.Module, init: Init) -> None:
    """Draw the weights of all convolutions: PyTorch's ``default``, or ``xavier`` with default biases.

    ``default`` is what train_ssd.py does without initial weights, as it never calls ``SSD.init()``. With
    ``--base_net``, it calls ``xavier_uniform_`` for the weights of extra blocks and heads.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
            if init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
