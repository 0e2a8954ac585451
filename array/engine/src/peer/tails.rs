//! Tails of journals between the server, which sends them, and clients, which keep them.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::put,
};
use bytes::{Buf as _, Bytes, BytesMut};
use cairn_core::{
    id::{AgentId, VolumeId},
    seal::SealKey,
    units::Generation,
    volume::tail::{Attempt, HEAD_BYTES, Head, MAX_PIECE_BYTES, Misfit},
};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::{
    Admission, FetchError, PeerClient,
    client::{collect, within},
};
use crate::{
    pace::Pace,
    tails::{KeepError, Tails},
    tls::{self, Member, Peer},
    volume::{TailError, TailRing},
};

/// A client's disk has this long to make a piece durable.
const PATIENCE: Duration = Duration::from_secs(20);
/// Words of an answer that are read.
const ANSWER_BYTES: usize = 16;
/// Clients that are asked at once, and pieces that wait to be put in.
const AT_ONCE: usize = 4;
const OVERTAKEN: &str = "overtaken";
const GAP: &str = "gap";

/// Whether so many bytes are to be written now; they are then.
pub type Writable = Arc<dyn Fn(usize) -> bool + Send + Sync>;

#[derive(Clone)]
struct Service {
    tails: Arc<Tails>,
    admits: Admission,
    writable: Writable,
}

type Refusal = (StatusCode, &'static str);

const NO_MEMBER: Refusal =
    (StatusCode::FORBIDDEN, "only the server gives tails, and only members get them\n");
const NO_VOLUME: Refusal = (StatusCode::BAD_REQUEST, "a volume id is 32 hex digits\n");

/// The routes of a client that keeps tails: it takes them from the server, as long as it is `writable`.
pub fn routes(tails: Arc<Tails>, admits: Admission, writable: Writable) -> Router {
    Router::new()
        .route("/peer/v1/tail/{volume}", put(keep).delete(forget).get(give))
        .layer(DefaultBodyLimit::max(MAX_PIECE_BYTES))
        .with_state(Service { tails, admits, writable })
}

impl Service {
    fn member(&self, peer: Option<Extension<Peer>>) -> Result<Member, Refusal> {
        let member = peer.and_then(|Extension(peer)| peer.member);
        member.filter(|member| (self.admits)(member)).ok_or(NO_MEMBER)
    }

    fn server(&self, peer: Option<Extension<Peer>>) -> Result<(), Refusal> {
        match self.member(peer)? {
            Member::Server => Ok(()),
            _ => Err(NO_MEMBER),
        }
    }
}

/// Does what blocks, and says what came of it.
async fn done(
    work: impl FnOnce() -> Result<(), KeepError> + Send + 'static,
) -> Result<StatusCode, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    match done.map_err(|_| KeepError::Io(io::Error::other("a thread broke"))).flatten() {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(KeepError::Misfit(Misfit::Overtaken)) => Err((StatusCode::CONFLICT, OVERTAKEN)),
        Err(KeepError::Misfit(Misfit::Gap)) => Err((StatusCode::CONFLICT, GAP)),
        Err(KeepError::NoPiece) => Err((StatusCode::BAD_REQUEST, "this is no piece of a tail\n")),
        Err(error @ (KeepError::TooMuch | KeepError::Io(_))) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a tail is not kept");
            Err((StatusCode::INSUFFICIENT_STORAGE, "there is no room for it\n"))
        }
    }
}

async fn keep(
    State(service): State<Service>,
    peer: Option<Extension<Peer>>,
    Path(volume): Path<String>,
    piece: Bytes,
) -> Result<StatusCode, Refusal> {
    service.server(peer)?;
    let volume: VolumeId = volume.parse().map_err(|_| NO_VOLUME)?;
    if !(service.writable)(piece.len()) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "nothing is written here now\n"));
    }
    done(move || service.tails.keep(volume, &piece)).await
}

#[derive(Deserialize, Serialize)]
struct Asked {
    generation: u64,
    number: u32,
}

async fn forget(
    State(service): State<Service>,
    peer: Option<Extension<Peer>>,
    Path(volume): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<StatusCode, Refusal> {
    service.server(peer)?;
    let volume: VolumeId = volume.parse().map_err(|_| NO_VOLUME)?;
    let attempt = Attempt { generation: Generation(asked.generation), number: asked.number };
    done(move || service.tails.forget(volume, attempt)).await
}

async fn give(
    State(service): State<Service>,
    peer: Option<Extension<Peer>>,
    Path(volume): Path<String>,
) -> Result<Response, Refusal> {
    match service.member(peer)? {
        Member::Server | Member::Agent(_) => {}
        Member::Target(_) | Member::Volume(_) => return Err(NO_MEMBER),
    }
    let volume: VolumeId = volume.parse().map_err(|_| NO_VOLUME)?;
    let failed = (StatusCode::INTERNAL_SERVER_ERROR, "this tail cannot be read\n");
    let files = tokio::task::spawn_blocking(move || service.tails.files(volume)).await;
    let files = files.map_err(|_| failed)?.map_err(|error| {
        tracing::error!(%volume, %error, "give a tail");
        failed
    })?;
    let parts = futures::stream::iter(files).flat_map(|(file, bytes)| {
        let file = tokio::fs::File::from_std(file);
        ReaderStream::new(tokio::io::AsyncReadExt::take(file, bytes))
    });
    Ok(Body::from_stream(parts).into_response())
}

/// Puts together what clients keep of a volume's journal, in a file that `ring` has. Returns who could not be asked, or
/// gave what is no piece of it.
///
/// # Errors
/// When the file cannot be written.
pub async fn gather(
    peers: &PeerClient,
    clients: &[AgentId],
    volume: VolumeId,
    content_key: &SealKey,
    mut ring: TailRing,
) -> io::Result<(TailRing, Vec<AgentId>)> {
    let (sender, mut pieces) = mpsc::channel(AT_ONCE);
    // Moved into what asks: it ends when all were asked.
    let (peers, clients) = (peers.clone(), clients.to_vec());
    let asks = clients.into_iter().map(move |client| {
        let (peers, sender) = (peers.clone(), sender.clone());
        async move {
            let passed = pass_on(&peers, client, volume, &sender).await;
            passed.err().map(|error| {
                tracing::warn!(%client, %volume, %error, "a client gives no tail of a journal");
                client
            })
        }
    });
    let asking = futures::stream::iter(asks).buffer_unordered(AT_ONCE).collect::<Vec<_>>();
    let putting = async {
        let mut wrong = Vec::new();
        while let Some((client, head, mut piece)) = pieces.recv().await {
            let key = content_key.clone();
            let put = move || {
                let put = ring.add(&key, &head, &mut piece);
                (ring, put)
            };
            let put = tokio::task::spawn_blocking(put).await.map_err(io::Error::other)?;
            ring = put.0;
            match put.1 {
                Ok(()) => {}
                Err(TailError::Io(error)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%client, %volume, %error, "a client gives a wrong tail");
                    wrong.push(client);
                }
            }
        }
        Ok((ring, wrong))
    };
    let (silent, put) = tokio::join!(asking, putting);
    let (ring, mut failed) = put?;
    failed.extend(silent.into_iter().flatten());
    failed.sort_unstable();
    failed.dedup();
    Ok((ring, failed))
}

async fn pass_on(
    peers: &PeerClient,
    client: AgentId,
    volume: VolumeId,
    to: &mpsc::Sender<(AgentId, Head, Vec<u8>)>,
) -> Result<(), FetchError> {
    let mut pieces = peers.tail(client, volume).await?;
    while let Some((head, piece)) = pieces.next().await? {
        if to.send((client, head, piece)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Why a client does not keep a piece.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error(transparent)]
    Failed(#[from] FetchError),
}

/// The pieces that a client gives, as they come.
#[derive(Debug)]
pub struct Pieces {
    answer: reqwest::Response,
    begun: BytesMut,
}

impl Pieces {
    /// The next piece, with its head; none after the last.
    ///
    /// # Errors
    /// [`FetchError::Bad`] when what comes is no piece.
    pub async fn next(&mut self) -> Result<Option<(Head, Vec<u8>)>, FetchError> {
        loop {
            if self.begun.len() >= HEAD_BYTES {
                let head = Head::decode(&self.begun).map_err(|_| FetchError::Bad)?;
                if self.begun.len() >= head.piece_bytes() {
                    let piece = self.begun.copy_to_bytes(head.piece_bytes());
                    return Ok(Some((head, piece.to_vec())));
                }
            }
            match within(self.answer.chunk()).await?.map_err(FetchError::Broken)? {
                Some(chunk) => self.begun.extend_from_slice(&chunk),
                None if self.begun.is_empty() => return Ok(None),
                None => return Err(FetchError::Bad),
            }
        }
    }
}

impl PeerClient {
    /// Has a client keep a piece: it is durable there when this returns.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send_tail(
        &self,
        to: AgentId,
        volume: VolumeId,
        piece: Vec<u8>,
    ) -> Result<(), SendError> {
        let url = tls::url(&Member::Agent(to), &format!("/peer/v1/tail/{volume}"));
        self.told(self.client().put(url).body(piece)).await
    }

    /// Has a client let go of a tail.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn forget_tail(
        &self,
        at: AgentId,
        volume: VolumeId,
        attempt: Attempt,
    ) -> Result<(), SendError> {
        let (generation, number) = (attempt.generation.0, attempt.number);
        let path = format!("/peer/v1/tail/{volume}?generation={generation}&number={number}");
        self.told(self.client().delete(tls::url(&Member::Agent(at), &path))).await
    }

    async fn told(&self, request: reqwest::RequestBuilder) -> Result<(), SendError> {
        let sent = tokio::time::timeout(PATIENCE, request.send()).await;
        let sent = sent.map_err(|_| FetchError::Stalled)?.map_err(FetchError::Unreachable)?;
        match sent.status() {
            StatusCode::NO_CONTENT => Ok(()),
            StatusCode::CONFLICT => match &collect(sent, ANSWER_BYTES, &Pace::default()).await?[..]
            {
                said if said == OVERTAKEN.as_bytes() => Err(Misfit::Overtaken.into()),
                _ => Err(Misfit::Gap.into()),
            },
            status => Err(FetchError::Refused(status).into()),
        }
    }

    /// What a client keeps of a volume's tail.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn tail(&self, from: AgentId, volume: VolumeId) -> Result<Pieces, FetchError> {
        let url = tls::url(&Member::Agent(from), &format!("/peer/v1/tail/{volume}"));
        let answer =
            within(self.client().get(url).send()).await?.map_err(FetchError::Unreachable)?;
        match answer.status() {
            StatusCode::OK => Ok(Pieces { answer, begun: BytesMut::new() }),
            status => Err(FetchError::Refused(status)),
        }
    }
}
