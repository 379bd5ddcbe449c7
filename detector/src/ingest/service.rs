//! The gRPC service `davy.v1.Telemetry`, as tonic's generated one but for what happens to bytes that are no message.
//!
//! The generated service decodes a frame within the stream, and its first failure ends the stream. Here each frame is
//! taken whole from the stream first and decoded then, so a frame that does not decode is an item like any other:
//! [`Inbound`] yields the error, and the next frame is read. What still ends a stream is a frame whose length is above
//! [`MESSAGE_BYTES_MAX`], because skipping it would mean reading it, and a frame said to be compressed.

use std::convert::Infallible;
use std::future::Ready;
use std::task::{Context, Poll};

use davy_proto::v1;
use davy_proto::v1::telemetry_server::SERVICE_NAME;
use prost::bytes::Buf;
use prost::{DecodeError, Message};
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstEncoder;

use super::{Answered, Ingest, MESSAGE_BYTES_MAX};

/// What an agent sends: each frame a message, or why it is none.
pub(super) type Inbound = Streaming<Result<v1::AgentMessage, DecodeError>>;

/// Takes frames whole, whether or not they decode.
#[derive(Debug, Default)]
struct FrameCodec;

#[derive(Debug, Default)]
struct FrameDecoder;

impl Codec for FrameCodec {
    type Encode = v1::DetectorMessage;
    type Decode = Result<v1::AgentMessage, DecodeError>;
    type Encoder = ProstEncoder<v1::DetectorMessage>;
    type Decoder = FrameDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        FrameDecoder
    }
}

impl Decoder for FrameDecoder {
    type Item = Result<v1::AgentMessage, DecodeError>;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        // All of it, even where decoding stops early: what stayed would be read as the next frame's head.
        let bytes = frame.copy_to_bytes(frame.remaining());
        Ok(Some(v1::AgentMessage::decode(bytes)))
    }
}

/// The service that tonic's server serves.
#[derive(Clone)]
pub struct TelemetryService(Ingest);

impl TelemetryService {
    /// Serves `ingest`.
    #[must_use]
    pub fn new(ingest: Ingest) -> Self {
        Self(ingest)
    }
}

impl NamedService for TelemetryService {
    const NAME: &'static str = SERVICE_NAME;
}

/// The method `Report`.
struct Report(Ingest);

impl StreamingService<Result<v1::AgentMessage, DecodeError>> for Report {
    type Response = v1::DetectorMessage;
    type ResponseStream = Answered;
    type Future = Ready<Result<Response<Answered>, Status>>;

    fn call(&mut self, request: Request<Inbound>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.report(request))))
    }
}

impl<B> Service<http::Request<B>> for TelemetryService
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != "/davy.v1.Telemetry/Report" {
            let refusal = Status::unimplemented("davy.v1.Telemetry has the method Report only");
            return Box::pin(std::future::ready(Ok(refusal.into_http())));
        }
        let report = Report(self.0.clone());
        Box::pin(async move {
            let mut grpc =
                Grpc::new(FrameCodec).apply_max_message_size_config(Some(MESSAGE_BYTES_MAX), None);
            Ok(grpc.streaming(report, request).await)
        })
    }
}
