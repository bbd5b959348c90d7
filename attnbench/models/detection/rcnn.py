"""Faster R-CNN (Ren et al., arXiv:1506.01497) and Mask R-CNN (He et al., arXiv:1703.06870) with a feature pyramid."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from attnbench.config.options import Count
from attnbench.models.detection import mmdet
from attnbench.models.detection.detector import Dense
from attnbench.models.detection.pyramid import Pyramid, PyramidOptions

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
REGION, MASK_REGION = 7, 14  # side of a region's feature map, for boxes and for masks
COUNTED_REGIONS, COUNTED_MASKS = 1000, 100  # regions and masks with which a network is counted


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class FasterRCNN(PyramidOptions):
    """The options of ``detector=faster_rcnn``.

    Attributes:
        hidden: width of the box head.
        proposals: regions kept in evaluation; in training, twice as many.
        samples: regions per image that train the box head.
    """

    hidden: Count = 1024
    proposals: Count = 1000
    samples: Count = 512

    masks = False

    def network(self, body: nn.Module, num_classes: int) -> nn.Module:
        """The detector around a classification network; ``num_classes`` excludes the background."""
        pyramid = Pyramid(body, self.channels)
        return self._by_protocol(TwoStage(pyramid, **self._parts(pyramid, num_classes + 1)))

    def _by_protocol(self, network: TwoStage | TwoStageWithMasks) -> nn.Module:
        if self.protocol == "mmdet":
            strides = network.backbone.map_strides
            anchors = mmdet.Anchors(self._anchor_sizes(len(strides)), RATIOS, strides)
            mmdet.converted(network, anchors, self.samples)
        return network

    def _anchor_sizes(self, maps: int) -> tuple[tuple[int], ...]:
        return tuple((self.anchor_size * 2**level,) for level in range(maps))

    def _parts(self, pyramid: Pyramid, classes: int) -> dict[str, Any]:
        """Arguments of torchvision's network; all others keep torchvision's defaults."""
        sizes = self._anchor_sizes(len(pyramid.map_strides))
        return {
            "min_size": self.short_side,
            "max_size": self.long_side,
            "rpn_anchor_generator": AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            "rpn_pre_nms_top_n_train": 2 * self.proposals,
            "rpn_pre_nms_top_n_test": self.proposals,
            "rpn_post_nms_top_n_train": 2 * self.proposals,
            "rpn_post_nms_top_n_test": self.proposals,
            "box_batch_size_per_image": self.samples,
            "box_roi_pool": pyramid.pooling(REGION),
            "box_head": TwoMLPHead(self.channels * REGION**2, self.hidden),
            "box_predictor": FastRCNNPredictor(self.hidden, classes),
        }


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class MaskRCNN(FasterRCNN):
    """The options of ``detector=mask_rcnn``: those of ``faster_rcnn``."""

    masks = True

    def network(self, body: nn.Module, num_classes: int) -> nn.Module:
        """The detector with a mask head; ``num_classes`` excludes the background."""
        pyramid, wide = Pyramid(body, self.channels), self.channels
        network = TwoStageWithMasks(
            pyramid,
            **self._parts(pyramid, num_classes + 1),
            mask_roi_pool=pyramid.pooling(MASK_REGION),
            mask_head=MaskRCNNHeads(wide, (wide,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(wide, wide, num_classes + 1),
        )
        return self._by_protocol(network)


class _Regions(Dense):
    """What Faster R-CNN and Mask R-CNN have in common."""

    backbone: Pyramid
    rpn: Any
    roi_heads: Any

    def dense(self, images: Tensor) -> list[Tensor]:
        """The heads' outputs for the maps, and for regions of zeros, as many as a network is counted with."""
        maps = self.backbone(images)
        wide, heads = self.backbone.out_channels, self.roi_heads
        regions = images.new_zeros(COUNTED_REGIONS, wide, REGION, REGION)
        outputs = [*self.rpn.head(list(maps.values())), *heads.box_predictor(heads.box_head(regions))]
        if heads.has_mask():
            regions = images.new_zeros(COUNTED_MASKS, wide, MASK_REGION, MASK_REGION)
            outputs.append(heads.mask_predictor(heads.mask_head(regions)))
        return outputs


class TwoStage(_Regions, TorchvisionFasterRCNN):
    """torchvision's Faster R-CNN, including its sampling, losses and non-maximum suppression."""


class TwoStageWithMasks(_Regions, TorchvisionMaskRCNN):
    """torchvision's Mask R-CNN."""
