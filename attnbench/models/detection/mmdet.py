"""What MMDetection 1.x does otherwise than torchvision: the protocol of the ECA paper's Tables 4 and 5.

The numbers are those of its configurations ``*_r50_fpn_1x``. What both projects do alike, such as sampling,
suppression, the clipping of boxes to the image, and mean, standard deviation and padding of images, is torchvision's
code. So are the names of all weights.

**Coordinates.** In MMDetection 1.x, a box ends with the last pixel inside it: the first 32 pixels are [0, 31], and
every width, overlap and offset has a "+ 1". Here a box ends where that pixel ends: [0, 32]. Overlaps, offsets, regions
and their levels are then those of torchvision's formulas. Only anchors and mask targets, which are rounded to pixels,
need to know.

**Not followed** are details that move a coordinate by less than a pixel. MMDetection scales the last pixel of an
annotated box, and not its end; it rounds the sides of a resized image to the nearest number, and not down; it rounds
the pixels of a resized image to bytes; it pastes masks into boxes that are rounded to pixels. It also keeps proposals
without area, as boxes of one pixel, and limits how much smaller than its anchor a box may be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

PADDED = 32  # the sides of an image are padded to a multiple of this
RPN_BETA, REGION_BETA = 1 / 9, 1.0  # where the losses of boxes turn from quadratic to linear
ROUNDING = 1e-5  # by which a share of one half may be too small

Targets = list[dict[str, Tensor]]


class Anchors(AnchorGenerator):
    """Anchors around the middle of each cell, at the stated strides.

    torchvision's are around the top left corner of each cell. Its strides are quotients of the sides of image and map,
    and differ from the stated ones where a map has an odd side.

    Args:
        sides: for each map, the sides of the square anchors in pixels; the others have the same area.
        ratios: height / width.
        strides: of each map, in pixels.

    Attributes:
        valid: for each image of the last batch, whether each anchor belongs to a cell of the image, and not of the
            padding that larger images of the batch make necessary; bool (anchors,).
    """

    def __init__(self, sides: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple(map(tuple, sides)), (tuple(ratios),) * len(sides))
        self.strides = list(strides)
        self.cell_anchors = [_cell(one, ratios, stride) for one, stride in zip(sides, strides, strict=True)]
        self.valid: list[Tensor] = []

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image, (anchors, 4) in float32."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(one.shape[-2:]) for one in feature_maps]
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, steps))
        self.valid = [torch.cat(list(self._valid(grids, size, device))) for size in image_list.image_sizes]
        return [anchors] * len(image_list.image_sizes)

    def _valid(self, grids: list[list[int]], size: tuple[int, int], device: torch.device) -> Iterator[Tensor]:
        for grid, stride, count in zip(grids, self.strides, self.num_anchors_per_location(), strict=True):
            rows, columns = (
                torch.arange(cells, device=device) * stride < math.ceil(side / PADDED) * PADDED
                for cells, side in zip(grid, size, strict=True)
            )
            yield (rows[:, None] & columns)[..., None].expand(-1, -1, count).flatten()


def _cell(sides: Sequence[float], ratios: Sequence[float], stride: int) -> Tensor:
    """The anchors of the first cell, (ratios x sides, 4); the first and the last pixel inside are rounded."""
    heights = torch.tensor(ratios).sqrt()[:, None] * torch.tensor(sides)
    widths = (1 / torch.tensor(ratios).sqrt())[:, None] * torch.tensor(sides)
    reach = (torch.stack([widths.flatten(), heights.flatten()], 1) - 1) / 2
    middle = (stride - 1) / 2
    return torch.cat([(middle - reach).round(), (middle + reach).round() + 1], 1)


class Assigner(Matcher):
    """Assigns boxes to objects by overlap. An object also gets the boxes that overlap it most, if by ``least``.

    torchvision has no such least overlap, and a box that overlaps another object more stays with that one.
    """

    def __init__(self, positive: float, negative: float, least: float) -> None:
        super().__init__(positive, negative, allow_low_quality_matches=True)
        self.least = least

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """From overlaps (objects, boxes), the object of each box (boxes,): -1 for background, -2 for unused boxes."""
        if not match_quality_matrix.shape[1]:
            return torch.empty(0, dtype=torch.int64, device=match_quality_matrix.device)
        return super().__call__(match_quality_matrix)

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        """Assign to each object the boxes that overlap it most; of several objects, the last one gets a box."""
        most = match_quality_matrix.amax(1, keepdim=True)
        chosen = (match_quality_matrix == most) & (most >= self.least)
        objects = torch.arange(len(most), device=matches.device)[:, None]
        last = torch.where(chosen, objects, -1).amax(0)
        matches.copy_(torch.where(last >= 0, last, matches))


class Proposals(RegionProposalNetwork):
    """A proposal network whose anchors train only if they are inside the image (``allowed_border=0``)."""

    def forward(self, images: ImageList, features: dict[str, Tensor], targets: Targets | None = None) -> Any:
        """Proposals of each image and, in training mode, the losses; as torchvision's."""
        if targets is not None:
            sizes = (torch.tensor(size) for size in images.image_sizes)
            targets = [{**target, "size": size} for target, size in zip(targets, sizes, strict=True)]
        return super().forward(images, features, targets)

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        """For each image, the label of each anchor (1: object, 0: background, -1: unused) and the box to predict."""
        inside = [_inside(boxes, target["size"]) for boxes, target in zip(anchors, targets, strict=True)]
        chosen = [boxes[where] for boxes, where in zip(anchors, inside, strict=True)]
        found = super().assign_targets_to_anchors(chosen, targets)
        labels = [where.new_full(where.shape, -1, dtype=torch.float32) for where in inside]
        aims = [boxes.clone() for boxes in anchors]
        for where, label, aim, labels_inside, aims_inside in zip(inside, labels, aims, *found, strict=True):
            label[where], aim[where] = labels_inside, aims_inside.to(aim.dtype)
        return labels, aims

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The losses of objectness and boxes, sums over the sampled anchors of all images divided by their number.

        An image without objects counts as if it had one more sample, and so does one without background.
        """
        positive, negative = self.fg_bg_sampler(labels)
        samples = torch.stack([part.sum() for part in (*positive, *negative)]).clamp(min=1).sum()
        objects, aims = torch.cat(positive).bool(), torch.cat(regression_targets)
        sampled = objects | torch.cat(negative).bool()
        kinds = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        boxes = F.smooth_l1_loss(pred_bbox_deltas[objects], aims[objects], beta=RPN_BETA, reduction="sum")
        return kinds / samples, boxes / samples


def _inside(boxes: Tensor, size: Tensor) -> Tensor:
    """Whether boxes (n, 4) are inside an image of this height and width."""
    height, width = size.tolist()
    return (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)


class Regions(RoIHeads):
    """The heads for regions, with MMDetection's assignment, losses and mask targets."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image or, in training mode, the losses; as torchvision's."""
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        assert targets is not None
        regions, objects, labels, aims = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, regions, image_shapes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        kinds = torch.cat(labels)
        losses = {"loss_classifier": F.cross_entropy(logits, kinds), "loss_box_reg": box_loss(deltas, aims, kinds)}
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(features, regions, objects, labels, image_shapes, targets)
        return [], losses

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each region, its object and label. The last regions are the objects themselves, and do not compete."""
        found = [part[: len(part) - len(boxes)] for part, boxes in zip(proposals, gt_boxes, strict=True)]
        objects, labels = super().assign_targets_to_proposals(found, gt_boxes, gt_labels)
        own = [torch.arange(len(kinds), device=kinds.device) for kinds in gt_labels]
        return _joined(objects, own), _joined(labels, gt_labels)

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        regions: list[Tensor],
        objects: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets,
    ) -> Tensor:
        """The mean cross-entropy of the masks of all regions that show an object."""
        shows = [kinds > 0 for kinds in labels]
        boxes = [part[where] for part, where in zip(regions, shows, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        if not len(logits):
            return logits.sum() * 0
        kinds = torch.cat([part[where] for part, where in zip(labels, shows, strict=True)])
        aims = [
            mask_targets(target["masks"], mine, part[where], logits.shape[-1])
            for target, mine, part, where in zip(targets, boxes, objects, shows, strict=True)
        ]
        mine = logits[torch.arange(len(kinds), device=kinds.device), kinds]
        return F.binary_cross_entropy_with_logits(mine, torch.cat(aims))


def _joined(parts: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(pair) for pair in zip(parts, others, strict=True)]


def box_loss(deltas: Tensor, aims: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The loss of boxes: a sum over the regions that show an object, divided by the number of all sampled regions.

    Args:
        deltas: the offsets that the head predicts for each class, (regions, 4 classes).
        aims: the offsets to predict, (regions, 4) over all images.
        labels: the class of each region, (regions,); 0 is background.
    """
    shows = labels > 0
    mine = deltas.unflatten(1, (-1, 4))[shows, labels[shows]]
    return F.smooth_l1_loss(mine, torch.cat(list(aims))[shows], beta=REGION_BETA, reduction="sum") / len(labels)


def mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor, side: int) -> Tensor:
    """The masks that a head has to predict: 0 or 1, float (n, side, side).

    A mask is cropped at the pixels in which its box begins and ends, resized bilinearly, and rounded. torchvision's
    targets are means over parts of pixels, and have values between 0 and 1.

    Args:
        masks: of the objects in an image, uint8 (objects, H, W).
        boxes: regions, (n, 4) in pixels.
        objects: the object that each region shows, (n,).
        side: of the head's output.
    """
    first, last = boxes[:, :2].long(), (boxes[:, 2:] - 1).long()
    extent = (last - first + 1).clamp(min=1)
    columns, rows = (_taps(first[:, axis], extent[:, axis], side, masks.shape[2 - axis]) for axis in (0, 1))
    values = torch.zeros(len(boxes), side, side, device=masks.device)
    for y, share_y in rows:
        for x, share_x in columns:
            there = masks[objects[:, None, None], y[:, :, None], x[:, None, :]]
            values += share_y[:, :, None] * share_x[:, None, :] * there
    return (values >= 0.5 - ROUNDING).float()


def _taps(first: Tensor, extent: Tensor, side: int, end: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels between which each of ``side`` points lies, and their shares; (n, side) each."""
    points = (torch.arange(side, device=first.device) + 0.5) * extent[:, None] / side - 0.5
    points = torch.minimum(points.clamp(min=0), extent[:, None] - 1)
    low = points.floor()
    share = points - low
    high = torch.minimum(low + 1, extent[:, None] - 1)
    pixels = [(first[:, None] + part.long()).clamp(max=end - 1) for part in (low, high)]
    return [(pixels[0], 1 - share), (pixels[1], share)]


def converted(network: GeneralizedRCNN, anchors: Anchors, samples: int) -> None:
    """Let torchvision's Faster or Mask R-CNN train and test as MMDetection 1.x does, from its initial weights.

    Args:
        network: newly built.
        anchors: of its pyramid.
        samples: regions per image that train the heads.
    """
    rpn: Any = network.rpn
    heads: Any = network.roi_heads
    network.rpn = Proposals(
        anchors,
        rpn.head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=rpn._pre_nms_top_n,
        post_nms_top_n=rpn._post_nms_top_n,
        nms_thresh=0.7,
    )
    network.rpn.proposal_matcher = Assigner(0.7, 0.3, least=0.3)
    network.roi_heads = Regions(
        heads.box_roi_pool,
        heads.box_head,
        heads.box_predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=samples,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),  # 1 / the standard deviations of targets, 0.1 and 0.2
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_roi_pool=heads.mask_roi_pool,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
    )
    network.roi_heads.proposal_matcher = Assigner(0.5, 0.5, least=0.5)
    _initialise_heads(network)


def _initialise_heads(network: Any) -> None:
    """The initial weights of the heads; those of the proposal network and of mask convolutions are torchvision's."""
    xavier(network.backbone.fpn)
    xavier(network.roi_heads.box_head)
    nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.01)
    nn.init.normal_(network.roi_heads.box_predictor.bbox_pred.weight, std=0.001)
    without_bias = [network.roi_heads.box_predictor]
    if network.roi_heads.has_mask():
        without_bias.append(network.roi_heads.mask_predictor)
    for part in without_bias:
        for name, parameter in part.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)


def xavier(part: nn.Module) -> None:
    """Initialise convolutions and linear layers by Xavier's uniform distribution, and their biases to 0."""
    for layer in part.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
