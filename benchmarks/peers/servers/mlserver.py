"""MLServer with a custom runtime and its adaptive batching; requests are the Open Inference Protocol's JSON."""

from __future__ import annotations

import json

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.network import Network, Setup


class Classifier(MLModel):
    """Pictures as base64 in one input; one JSON string each as the output."""

    async def load(self) -> bool:
        self.network = Network(Setup.from_environment())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pictures = [self.network.picture(data) for data in Base64Codec.decode_input(payload.inputs[0])]
        answers = [json.dumps(answer) for answer in self.network.answers(pictures)]
        output = StringCodec.encode_output("answers", answers)
        return InferenceResponse(model_name=self.name, outputs=[output])
