//! A member that does wrong: has a client's papers and segments, and serves them badly. For tests.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{delete, get},
};
use cairn_array::{
    dsf::{Dsf, DsfReader},
    tls::{Papers, serve, server_tls},
};
use clap::{Parser, ValueEnum};
use futures::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Parser)]
struct Options {
    /// The state of the client whose part is played; no agent runs on it
    #[arg(long)]
    state_dir: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    manner: Manner,
}

/// What it does when it is asked for a segment.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Manner {
    /// As many bytes as it should send, but others.
    Wrong,
    /// Bytes without an end.
    Endless,
    /// The right bytes, one each second.
    Trickle,
    /// It has nothing of what the map says that it has.
    Missing,
    /// It takes the question and says nothing.
    Silent,
}

struct Shelf {
    reader: DsfReader,
    manner: Manner,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let read = |name: &str| {
        let path = options.state_dir.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let papers = Papers {
        certificate_pem: read("certificate.pem")?,
        key_pem: read("key.pem")?,
        ca_pem: read("ca.pem")?,
    };
    let dsf = Dsf::open(&options.state_dir.join("segments.dsf")).context("open the segments")?;
    let shelf = Arc::new(Shelf { reader: dsf.reader(), manner: options.manner });
    let app = Router::new()
        .route("/peer/v1/turn", get(|| async { "1" }))
        .route("/peer/v1/turn/{number}", delete(|| async { StatusCode::NO_CONTENT }))
        .route("/peer/v1/segment/{id}", get(segment))
        .with_state(shelf);
    let listener = TcpListener::bind(options.listen).await.context("listen")?;
    serve(listener, server_tls(&papers)?, app, CancellationToken::new()).await
}

async fn segment(State(shelf): State<Arc<Shelf>>, Path(id): Path<String>) -> Response {
    let Some(bytes) = id.parse().ok().and_then(|id| shelf.reader.get(id).ok()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match shelf.manner {
        Manner::Missing => StatusCode::NOT_FOUND.into_response(),
        Manner::Silent => std::future::pending().await,
        Manner::Wrong => bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>().into_response(),
        Manner::Endless => {
            Body::from_stream(stream::repeat_with(move || Ok::<_, io::Error>(bytes.clone())))
                .into_response()
        }
        Manner::Trickle => {
            let length = bytes.len();
            let one_by_one = stream::iter(0..length).then(move |at| {
                let byte = bytes.slice(at..at + 1);
                async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Ok::<_, io::Error>(byte)
                }
            });
            ([(header::CONTENT_LENGTH, length)], Body::from_stream(one_by_one)).into_response()
        }
    }
}
