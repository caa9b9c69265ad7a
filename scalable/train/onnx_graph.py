"""Models as ONNX graphs in double precision, for programs without Python: the linear family and networks, transforms included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalable.errors import InputError, require
from scalable.io.atomic import write_bytes
from scalable.train.components import PCA
from scalable.train.model import Model
from scalable.train.network import MLPRegressor

OPSET, IR_VERSION = 17, 8
"""Old enough for runtimes of the last years; nothing newer is needed."""


class _Graph:
    """Operations one after another, each on what the last one gave."""

    def __init__(self, onnx: Any, name: str) -> None:
        self.onnx, self.last = onnx, name
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def then(self, operation: str, *constants: NDArray[Any], name: str = "", **attributes: Any) -> None:
        inputs, out = [self.last], name or f"step{len(self.nodes)}"
        for values in constants:
            inputs.append(f"constant{len(self.constants)}")
            self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), inputs[-1]))
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, [out], **attributes))
        self.last = out


def to_onnx(model: Model, path: str | Path) -> None:
    """Write a model as an ONNX graph, whole or not at all; needs ``pip install 'scalable-sky[onnx]'``.

    The graph takes ``features``, float64 of shape (rows, features), in the order and units of ``model.features.names``, and gives
    ``prediction``, float64 of shape (rows,), and where the model has bins of the target, ``pdf`` of shape (rows, bins). Its
    metadata say names, units and policy as JSON under ``scalable``: a runtime checks none of them, `predict` does. Predictions
    agree with those of `predict` to rounding, not to the bit, for a runtime adds in an order of its own.

    Parameters
    ----------
    model : Model
        Of the linear family, or a network; the features may go through principal components or a standardisation first.
    path : path
        The file to write.

    Raises
    ------
    InputError
        If a graph cannot hold the model exactly.
    """
    estimator = model.estimator
    if not (hasattr(estimator, "coef_") or isinstance(estimator, MLPRegressor)):
        raise InputError(
            f"{model.kind} has no exact ONNX graph (those of trees split in single precision, for others there is no operation): "
            "give a linear model or a network, or use the file of Model.save"
        )
    onnx = require("onnx", "onnx")
    graph, helper = _Graph(onnx, "features"), onnx.helper
    double, pdf = onnx.TensorProto.DOUBLE, []
    _transform(graph, model.transform)
    if isinstance(estimator, MLPRegressor):
        graph.then("Sub", estimator.centre_[:-1])
        graph.then("Div", estimator.scale_[:-1])
        for number, (weight, bias) in enumerate(zip(estimator.weights_, estimator.biases_, strict=True)):
            if number:
                graph.then("Relu")
            graph.then("MatMul", weight)
            graph.then("Add", bias)
        if estimator.bins is None:
            graph.then("Mul", estimator.scale_[-1:])
            graph.then("Add", estimator.centre_[-1:])
        else:
            edges = np.asarray(estimator.bins, dtype=np.float64)
            graph.then("Softmax", name="pdf", axis=1)
            pdf = [helper.make_tensor_value_info("pdf", double, ["rows", len(edges) - 1])]
            graph.then("MatMul", ((edges[1:] + edges[:-1]) / 2)[:, None])
    else:
        graph.then("MatMul", estimator.coef_[:, None])
        graph.then("Add", np.array([estimator.intercept_]))
    graph.then("Squeeze", np.array([1]), name="prediction")
    given = helper.make_tensor_value_info("features", double, ["rows", len(model.features.names)])
    found = [helper.make_tensor_value_info("prediction", double, ["rows"]), *pdf]
    made = helper.make_model(
        helper.make_graph(graph.nodes, model.kind, [given], found, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="scalable",
    )
    names = {"names": model.features.names, "units": model.about.get("feature_units", []), "columns": dict(model.units)}
    said = {**names, "target": model.target, "target_unit": model.target_unit, "features": model.features.to_dict()}
    helper.set_model_props(made, {"scalable": json.dumps({**said, "digest": model.digest})})
    onnx.checker.check_model(made, full_check=True)
    write_bytes(Path(path), made.SerializeToString())


def _transform(graph: _Graph, transform: Any) -> None:
    if transform is None:
        return
    graph.then("Sub", transform.mean_ if isinstance(transform, PCA) else transform.centre_)
    graph.then("Div", transform.scale_)
    if isinstance(transform, PCA):
        graph.then("MatMul", transform.components_.T)
        if transform.whiten:
            graph.then("Div", np.sqrt(np.where(transform.explained_variance_ > 0, transform.explained_variance_, 1.0)))
