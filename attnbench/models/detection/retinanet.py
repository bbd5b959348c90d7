"""RetinaNet (Lin et al., arXiv:1708.02002): dense detection with a focal loss, on a feature pyramid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.ops import box_iou, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from attnbench.models.detection import mmdet
from attnbench.models.detection.detector import Dense
from attnbench.models.detection.mmdet import Targets
from attnbench.models.detection.pyramid import Pyramid, PyramidOptions

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
OCTAVE = tuple(2 ** (n / 3) for n in range(3))  # sides of the anchors of one map, relative to the smallest
LEVELS, EXTRAS = 3, 2  # maps from the backbone (C3 to C5), and coarser ones (P6 and P7)
FOCUS, BALANCE, BETA = 2.0, 0.25, 0.11  # gamma and alpha of the focal loss; smooth L1 loss of boxes
CANDIDATES = 1000  # anchors of each map that are decoded in evaluation


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class RetinaNet(PyramidOptions):
    """The options of ``detector=retinanet``: those of all detectors with a pyramid."""

    masks = False

    def network(self, body: nn.Module, num_classes: int) -> nn.Module:
        """The detector around a classification network; the head has no output for the background."""
        sizes = {"min_size": self.short_side, "max_size": self.long_side}
        smallest = [self.anchor_size * 2**level for level in range(LEVELS + EXTRAS)]
        if self.protocol == "torchvision":
            pyramid = Pyramid(body, self.channels, levels=LEVELS, extra=_from_pyramid, extras=EXTRAS)
            sides = tuple(tuple(int(side * share) for share in OCTAVE) for side in smallest)[: len(pyramid.map_strides)]
            anchors = AnchorGenerator(sides, (RATIOS,) * len(sides))
            return SingleStage(pyramid, num_classes, **sizes, anchor_generator=anchors)
        pyramid = Pyramid(body, self.channels, levels=LEVELS, extra=_from_backbone, extras=EXTRAS)
        octaves = [[side * share for share in OCTAVE] for side in smallest][: len(pyramid.map_strides)]
        network = SingleStageByMMDetection(
            pyramid,
            num_classes,
            **sizes,
            anchor_generator=mmdet.Anchors(octaves, RATIOS, pyramid.map_strides),
            proposal_matcher=mmdet.Assigner(0.5, 0.4, least=0.0),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        mmdet.xavier(pyramid.fpn)
        return network


class FromBackbone(LastLevelP6P7):
    """P6 from the backbone's last map, P7 from P6; torchvision also has a ReLU between them."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """The pyramid's maps with two more, and the names of all."""
        p6 = self.p6(c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


def _from_backbone(coarsest: int, channels: int) -> ExtraFPNBlock:
    return FromBackbone(coarsest, channels)


def _from_pyramid(coarsest: int, channels: int) -> ExtraFPNBlock:
    return LastLevelP6P7(channels, channels)


class SingleStage(Dense, TorchvisionRetinaNet):
    """torchvision's RetinaNet. Its labels begin at 0, those of data sets at 1."""

    backbone: Pyramid

    def dense(self, images: Tensor) -> dict[str, Tensor]:
        """Class logits (N, anchors, classes) and box offsets (N, anchors, 4)."""
        heads: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return heads

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """The losses of classes and boxes, by name."""
        shifted = [{**target, "labels": target["labels"] - 1} for target in targets]
        return self._losses(shifted, head_outputs, anchors)

    def _losses(self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors)
        return losses

    def postprocess_detections(self, *args: Any) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of each image."""
        return [{**one, "labels": one["labels"] + 1} for one in super().postprocess_detections(*args)]


class SingleStageByMMDetection(SingleStage):
    """RetinaNet with the losses and candidates of MMDetection 1.x."""

    anchor_generator: mmdet.Anchors

    def _losses(self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]) -> dict[str, Tensor]:
        """Sums over the batch, divided by the number of anchors with an object; an image without one counts as one.

        torchvision divides for each image by its own number, and has L1 loss for boxes.
        """
        kinds, boxes, number = [], [], 0
        outputs = zip(head_outputs["cls_logits"], head_outputs["bbox_regression"], strict=True)
        for target, (logits, deltas), given, valid in zip(
            targets, outputs, anchors, self.anchor_generator.valid, strict=True
        ):
            objects = self._objects(target["boxes"], given, valid)
            shows, used = objects >= 0, objects != self.proposal_matcher.BETWEEN_THRESHOLDS
            mine = objects[shows]
            classes = torch.zeros_like(logits)
            classes[shows, target["labels"][mine]] = 1.0
            kinds.append(sigmoid_focal_loss(logits[used], classes[used], BALANCE, FOCUS, reduction="sum"))
            aims = self.box_coder.encode_single(target["boxes"][mine], given[shows])
            boxes.append(F.smooth_l1_loss(deltas[shows], aims, beta=BETA, reduction="sum"))
            number += max(1, len(mine))
        sums = {"classification": torch.stack(kinds).sum(), "bbox_regression": torch.stack(boxes).sum()}
        return {name: value / number for name, value in sums.items()}

    def _objects(self, boxes: Tensor, anchors: Tensor, valid: Tensor) -> Tensor:
        """The object of each anchor (anchors,): -1 for background, -2 for anchors that are not used."""
        objects = torch.full_like(valid, self.proposal_matcher.BETWEEN_THRESHOLDS, dtype=torch.int64)
        objects[valid] = -1 if not len(boxes) else self.proposal_matcher(box_iou(boxes, anchors[valid]))
        return objects

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of each image, from the anchors of each map with the highest scores.

        torchvision takes a map's highest scores, of which an anchor may have several.
        """
        best = [one.amax(2).topk(min(CANDIDATES, one.shape[1]), 1).indices for one in head_outputs["cls_logits"]]
        chosen = {
            name: [torch.take_along_dim(one, at[..., None], 1) for one, at in zip(maps, best, strict=True)]
            for name, maps in head_outputs.items()
        }
        given = [[one[at[number]] for one, at in zip(image, best, strict=True)] for number, image in enumerate(anchors)]
        self.topk_candidates = CANDIDATES * chosen["cls_logits"][0].shape[2]  # every class of a chosen anchor
        return super().postprocess_detections(chosen, given, image_shapes)
