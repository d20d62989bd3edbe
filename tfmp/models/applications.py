"""Every backbone of `keras.applications`, with what mixed precision asks of its two ends.

A model here is Keras' own network without its top, all of its layers by Keras' names, between

- images of 0-255 in any dtype, gray ones made three equal channels, small ones enlarged, and all
  normalized in float32 as the family's published weights want them: Keras has half of the families
  normalize outside of the model, and half in layers that compute by the policy, where float16
  rounds what it is given and has no room above 65504;
- a head of dropout and one dense layer in float32: Keras' own tops end in float16, softmax too.

So a file of weights without top fits the backbone. VGG's and MobileNetV3's published tops have
more layers than this head.

Only Keras' own layers and operations are used: a saved model loads without tfmp.

References:
    https://keras.io/api/applications/ (the papers of each family are named there).
"""

import functools
import inspect
from collections.abc import Callable

import keras
from keras import applications, layers, ops

from tfmp import policies
from tfmp.errors import UserError
from tfmp.models import parts
from tfmp.models.weights import load_weights as load_file

# Blue, green and red, as `preprocess_input` of ResNet (version 1) and VGG has them.
CAFFE_MEAN = (103.939, 116.779, 123.68)
SMALLEST = 32  # pixels


def application(
    make: Callable[..., keras.Model],
    *,
    normalize: str,
    smallest: int = SMALLEST,
    classes: int,
    input_shape: tuple[int, int, int],
    weights: str | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    batch_norm_momentum: float | None = None,
    name: str,
) -> keras.Model:
    """Builds a classifier on a backbone of `keras.applications` under the global policy.

    Args:
        make: Its constructor there.
        normalize: A key of `NORMALIZE`, or "inside": by EfficientNet's own layers.
        smallest: Shortest side that the backbone takes, in pixels; smaller images are enlarged by
            the least whole factor.
        classes: Number of logits.
        input_shape: (height, width, channels) of an image, in pixels; one or three channels.
        weights: "imagenet": Keras downloads the published weights of the backbone, or finds them in
            ~/.keras/models. None: random ones, by `keras.utils.set_random_seed`.
        alpha: Factor on the width of the MobileNets; None: 1.
        dropout: Share of features dropped before the head's dense layer.
        batch_norm_momentum: Momentum of BatchNorm's moving statistics. None: Keras' own for the
            family, which is 0.999 in MobileNetV2 and V3: right for the long trainings that it was
            published with, and too slow for a few hundred steps.
        name: The model's name.

    Returns:
        A built functional model: images [batch, height, width, channels] of 0-255, any dtype, to
        logits [batch, classes] float32.

    Raises:
        ValueError: A shape or an option that can't be, or weights that can't be downloaded.
    """
    classes, input_shape = parts.check(classes, input_shape)
    if input_shape[2] not in (1, 3):
        raise UserError(
            f"input_shape: expected images of 1 or 3 channels, for {name}. Received: {input_shape}"
        )
    images = keras.Input(input_shape, name="images")
    x = NORMALIZE[normalize](_enlarged(_colored(images), smallest))
    backbone = _backbone(make, x, weights, alpha, name)
    features = layers.Dropout(dropout, name="head_dropout")(backbone.output)
    logits = layers.Dense(
        classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        dtype="float32",
        name="head",
    )(features)
    model = keras.Model(images, logits, name=name)
    if batch_norm_momentum is not None:
        for layer in batch_norms(model):
            layer.momentum = batch_norm_momentum
    return _normalized_inside(model, weights) if normalize == "inside" else model


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNormalization layers of a model, wherever they are in it."""
    found = model._flatten_layers(include_self=False)
    return [x for x in found if isinstance(x, layers.BatchNormalization)]


def load_weights(model: keras.Model, file: str) -> None:
    """Loads weights into a model of `MODELS`: all of them, or those of its backbone.

    Args:
        model: What `application` returned, or its copy under another policy.
        file: Path of a file: of such a model, also one for other classes, whose head is left out
            then; or of Keras' own model without top (`.weights.h5`, or `.h5` as Keras publishes
            them). "imagenet": nothing is left to do.

    Raises:
        UserError: No such file, or weights of another model.
    """
    if file == "imagenet":
        return
    loaded = load_file(model, file, backbone_of(model))
    _mend_normalization(model)
    if loaded is not model:
        print(f"weights: all but the head are from {file}")


def backbone_of(model: keras.Model) -> keras.Model:
    """The same layers without the head: images to features [batch, channels]."""
    features = model.get_layer("head_dropout").input
    return keras.Model(model.input, features, name=f"{model.name}_backbone")


def _backbone(make, x, weights, alpha, name):
    accepted = inspect.signature(make).parameters
    options = {"include_preprocessing": False} if "include_preprocessing" in accepted else {}
    if alpha is not None:
        if "alpha" not in accepted:
            raise UserError(f"alpha: expected none for {name}, which has no widths. Got: {alpha}")
        options["alpha"] = alpha
    try:
        return make(
            include_top=False,
            weights=weights,
            input_tensor=x,
            input_shape=x.shape[1:],
            pooling="avg",
            **options,
        )
    except ValueError as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
    except Exception as error:
        # Keras raises no kind of its own where a download fails.
        if weights is None or "URL fetch failure" not in str(error):
            raise
        raise UserError(
            f"{name}: the published weights can't be downloaded: {error}. Fetch the file by hand "
            "and give it as the file of weights."
        ) from error


def _colored(images):
    """Three channels in float32; of gray images three equal ones."""
    if images.shape[-1] == 3:
        return images
    return layers.Concatenate(dtype="float32", name="gray_to_rgb")([images] * 3)


def _enlarged(images, smallest):
    factor = -(-smallest // min(images.shape[1:3]))
    if factor == 1:
        return images
    return layers.UpSampling2D(factor, interpolation="bilinear", dtype="float32", name="enlarge")(
        images
    )


def _rescale(scale: float, offset):
    return functools.partial(_rescaled, scale=scale, offset=offset)


def _rescaled(images, scale, offset):
    return layers.Rescaling(scale, offset, dtype="float32", name="normalize")(images)


def _caffe(images):
    return _rescaled(ops.flip(images, axis=-1), 1.0, [-x for x in CAFFE_MEAN])


def _normalized_inside(model, weights):
    """EfficientNet's own first layers, in float32, with deviations where Keras has variances.

    Its published weights hold the deviations as if they were variances. Keras mends that by a
    layer behind, which it adds for weights that it downloads, and leaves out for those of a file.
    """
    if keras.config.dtype_policy().compute_dtype != "float32":
        kinds = (layers.Rescaling, layers.Normalization)
        raw = [x.name for x in model.layers if isinstance(x, kinds)]
        model = policies.set_policy(model, policies.with_float32(raw))
    if weights is None:
        _mend_normalization(model)
    return model


def _mend_normalization(model: keras.Model) -> None:
    """Gives EfficientNet's Normalization ImageNet's mean and variance; others have none."""
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.adapt_mean.assign(parts.IMAGENET_MEAN)
            layer.adapt_variance.assign([x**2 for x in parts.IMAGENET_STD])
            layer.finalize_state()


NORMALIZE: dict[str, Callable] = {
    "unit": _rescale(1 / 127.5, -1.0),
    "unit_128": _rescale(1 / 128.0, -1.0),
    "imagenet": parts.normalize,
    "caffe": _caffe,
    "inside": lambda images: images,
}


def _family(normalize: str, smallest: int = SMALLEST, **constructors):
    return {
        name: functools.partial(application, make, normalize=normalize, smallest=smallest)
        for name, make in constructors.items()
    }


MODELS: dict[str, Callable[..., keras.Model]] = {
    # For images of 8 to 32 px; 133,978 parameters with 10 classes.
    "mobilenet_v3_micro": functools.partial(
        application,
        applications.MobileNetV3Small,
        normalize="unit",
        alpha=0.35,
        batch_norm_momentum=0.9,
    ),
    **_family(
        "unit",
        mobilenet=applications.MobileNet,
        mobilenet_v2=applications.MobileNetV2,
        mobilenet_v3_small=applications.MobileNetV3Small,
        mobilenet_v3_large=applications.MobileNetV3Large,
        nasnet_mobile=applications.NASNetMobile,
        nasnet_large=applications.NASNetLarge,
        resnet50_v2=applications.ResNet50V2,
        resnet101_v2=applications.ResNet101V2,
        resnet152_v2=applications.ResNet152V2,
    ),
    **_family("unit", 71, xception=applications.Xception),
    **_family(
        "unit",
        75,
        inception_v3=applications.InceptionV3,
        inception_resnet_v2=applications.InceptionResNetV2,
    ),
    **_family(
        "imagenet",
        convnext_tiny=applications.ConvNeXtTiny,
        convnext_small=applications.ConvNeXtSmall,
        convnext_base=applications.ConvNeXtBase,
        convnext_large=applications.ConvNeXtLarge,
        convnext_xlarge=applications.ConvNeXtXLarge,
        densenet121=applications.DenseNet121,
        densenet169=applications.DenseNet169,
        densenet201=applications.DenseNet201,
        efficientnet_v2_b0=applications.EfficientNetV2B0,
        efficientnet_v2_b1=applications.EfficientNetV2B1,
        efficientnet_v2_b2=applications.EfficientNetV2B2,
        efficientnet_v2_b3=applications.EfficientNetV2B3,
    ),
    **_family(
        "unit_128",
        efficientnet_v2_s=applications.EfficientNetV2S,
        efficientnet_v2_m=applications.EfficientNetV2M,
        efficientnet_v2_l=applications.EfficientNetV2L,
    ),
    **_family(
        "inside",
        **{f"efficientnet_b{n}": getattr(applications, f"EfficientNetB{n}") for n in range(8)},
    ),
    # The first version, with the stride in the 1x1 convolution; "resnet50" is version 1.5.
    **_family(
        "caffe",
        resnet50_v1=applications.ResNet50,
        resnet101_v1=applications.ResNet101,
        resnet152_v1=applications.ResNet152,
        vgg16=applications.VGG16,
        vgg19=applications.VGG19,
    ),
}
